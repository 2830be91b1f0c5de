//! The welcome of a first start: a command to paste. Only for the embedded default without tokens: in front
//! of the paid API it would be an invitation to spend.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;

use crate::base::operation::IMAGE_CROPPING;
use crate::config::{Config, UpstreamKind};

/// In a clone of the repository.
pub(super) const SAMPLE: &str = "tests/images/rocket.jpg";

pub(super) fn is_trial(config: &Config) -> bool {
    config.upstream.kind == UpstreamKind::Builtin && config.teams.is_empty()
}

pub(super) fn write(address: SocketAddr, sample: &Path, out: &mut dyn Write) -> io::Result<()> {
    let picture = if sample.is_file() { sample } else { Path::new("picture.jpg") };
    writeln!(
        out,
        "\nGranary is ready, with its built-in engine. Try it from another terminal:\n\n    \
         curl -F image=@{} -F width=400 -F height=400 http://{address}{}\n\n\
         data.url of the answer is the crop. Ask again: the answer comes from the cache. Ctrl-C stops.\n",
        picture.display(),
        IMAGE_CROPPING.path,
    )?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(sample: &str) -> String {
        let mut out = Vec::new();
        write(([127, 0, 0, 1], 4567).into(), Path::new(sample), &mut out).expect("memory takes it");
        String::from_utf8(out).expect("it is text")
    }

    #[test]
    fn the_line_names_a_picture_that_is_there() {
        let there = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images/rocket.jpg");
        assert!(Path::new(there).ends_with(SAMPLE));
        for (sample, named) in [(there, there), ("/nowhere/rocket.jpg", "picture.jpg")] {
            let line = format!(
                "    curl -F image=@{named} -F width=400 -F height=400 \
                 http://127.0.0.1:4567/api/image/editing/image-cropping"
            );
            assert!(written(sample).lines().any(|written| written == line), "{}", written(sample));
        }
    }
}
