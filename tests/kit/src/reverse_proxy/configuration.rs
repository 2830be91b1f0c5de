//! What each program is told: as little as it takes, so that its defaults are what is tested.

use std::net::SocketAddr;
use std::path::Path;

/// An origin that refuses by the head alone.
pub(super) const UNAUTHORIZED_ORIGIN: &str = r#"server {
    listen LISTEN;
    client_max_body_size 0;
    default_type application/json;
    location / { return 401 '{"error_code":401}'; }
}"#;

/// An origin that would read the body for its upstream, were it not too large.
pub(super) const TOO_LARGE_ORIGIN: &str = "server {
    listen LISTEN;
    client_max_body_size LIMIT;
    location / { proxy_pass http://127.0.0.1:9; }
}";

/// No management port, no change of user, and a compiler command that needs nothing but a compiler.
pub(super) const VARNISH_ARGUMENTS: [&str; 11] = [
    "-F",
    "-j",
    "none",
    "-T",
    "none",
    "-i",
    "granary-kit",
    "-s",
    "malloc,64m",
    "-p",
    "cc_command=exec cc -std=gnu11 -fPIC -shared -o %o %s",
];

/// The bare one.
pub(super) fn nginx(origin: &str) -> String {
    format!(
        "server {{
    listen LISTEN;
    client_max_body_size 0;
    location / {{ proxy_pass http://{origin}; }}
}}"
    )
}

/// As guides to WebSockets have it.
pub(super) fn nginx_upgrade(origin: &str) -> String {
    format!(
        "server {{
    listen LISTEN;
    client_max_body_size 0;
    location / {{
        proxy_pass http://{origin};
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection \"upgrade\";
    }}
}}"
    )
}

/// A whole file around a server, which writes below `folder` alone.
pub(super) fn nginx_around(server: &str, folder: &Path) -> String {
    let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("    {name}_temp_path {folder}/{name};\n"))
        .collect();
    format!(
        "daemon off;
{user}
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
{temporary}{server}
}}
"
    )
}

pub(super) fn haproxy(address: SocketAddr, origin: &str) -> String {
    format!(
        "global
    maxconn 1000
    log stderr format raw local0
defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    timeout client 50s
    timeout server 50s
frontend clients
    bind {address}
    default_backend granary
backend granary
    server granary {origin}
"
    )
}

pub(super) fn apache(address: SocketAddr, origin: &str, modules: &Path) -> String {
    // It serves nothing as root.
    let user = if rustix::process::getuid().is_root() { "User #65534\nGroup #65534" } else { "" };
    let modules = modules.display();
    format!(
        "ServerName proxy
Listen {address}
PidFile pid
DefaultRuntimeDir .
ErrorLog /dev/stderr
{user}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
ProxyPass / http://{origin}/
"
    )
}

pub(super) fn varnish(origin: &str) -> String {
    let (host, port) = origin.rsplit_once(':').expect("host:port");
    format!("vcl 4.1;\nbackend granary {{ .host = \"{host}\"; .port = \"{port}\"; }}\n")
}
