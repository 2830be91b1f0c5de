//! Certificates made up on the spot, as the PEM files that a server reads.

use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};

/// A certificate signed by itself, and its key.
#[derive(Clone, Debug)]
pub struct SelfSigned {
    /// The certificate as PEM.
    pub chain: String,
    /// Its key as PEM.
    pub key: String,
    /// The certificate as DER: what a client trusts, and what it is shown.
    pub der: Vec<u8>,
}

impl SelfSigned {
    /// For `localhost` and `127.0.0.1`, with a key of its own, until the end of this year's date.
    ///
    /// # Panics
    ///
    /// If there is no randomness.
    pub fn until(year: i32) -> SelfSigned {
        let mut parameters =
            CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("two names");
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("the system has randomness");
        let certificate = parameters.self_signed(&key).expect("a key signs");
        let der = certificate.der().to_vec();
        SelfSigned { chain: pem("CERTIFICATE", &der), key: pem("PRIVATE KEY", &key.serialize_der()), der }
    }

    /// Writes both, the key readable for its owner alone, each in one step.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn write(&self, chain: &Path, key: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        for (path, text, mode) in [(key, &self.key, 0o600), (chain, &self.chain, 0o644)] {
            let new = path.with_extension("new");
            std::fs::write(&new, text)?;
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode))?;
            std::fs::rename(&new, path)?;
        }
        Ok(())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.collect::<Vec<_>>().join("\n"))
}
