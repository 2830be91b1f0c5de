//! A certificate and its key, from PEM to a TLS configuration. Pure: reads no files. Errors quote nothing of
//! the key.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use x509_parser::parse_x509_certificate;

/// Matches its key. Cheap to clone.
#[derive(Clone)]
pub struct Certificate {
    pub config: Arc<ServerConfig>,
    pub expires: Timestamp,
    fingerprint: blake3::Hash,
}

/// In the words of a configuration's problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    #[error(
        "holds no certificate that can be read; write a PEM file with the server's own certificate first, and then \
         those between it and a root"
    )]
    Chain,
    #[error("holds no private key that can be read; write a PEM file with an RSA, ECDSA or Ed25519 key")]
    Key,
    #[error("does not belong to the certificate in server.tls_cert; write the key that it was made for")]
    Mismatch,
}

impl Certificate {
    /// Reads the chain, and the key of its first certificate.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| CertificateError::Chain)?;
        let first = certificates.first().ok_or(CertificateError::Chain)?;
        let (_, parsed) = parse_x509_certificate(first).map_err(|_| CertificateError::Chain)?;
        let expires = Timestamp::from_second(parsed.validity().not_after.timestamp());
        let expires = expires.map_err(|_| CertificateError::Chain)?;
        let private = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::Key)?;
        // The provider is named, because with two of them in the tree rustls would panic at run time.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows the versions that are safe")
            .with_no_client_auth()
            .with_single_cert(certificates, private)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => CertificateError::Mismatch,
                rustls::Error::InvalidCertificate(_) => CertificateError::Chain,
                _ => CertificateError::Key,
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut hasher = blake3::Hasher::new();
        hasher.update(blake3::hash(chain).as_bytes()).update(blake3::hash(key).as_bytes());
        Ok(Self { config: Arc::new(config), expires, fingerprint: hasher.finalize() })
    }
}

/// Equal when made of the same two files.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate and its key, as PEM.
    fn pair() -> (String, String) {
        let made = granary_kit::certificate::SelfSigned::until(2040);
        (made.chain, made.key)
    }

    #[test]
    fn a_pair_of_files_is_taken_only_when_they_belong_together() {
        let ((chain, key), (other_chain, other_key)) = (pair(), pair());
        let of = |chain: &str, key: &str| Certificate::from_pem(chain.as_bytes(), key.as_bytes());
        let check = |chain: &str, key: &str, expected| assert_eq!(of(chain, key).err(), Some(expected));
        let taken = of(&chain, &key).unwrap();
        assert!(taken == of(&chain, &key).unwrap());
        assert!(taken != of(&other_chain, &other_key).unwrap());
        assert!(of(&format!("{chain}{other_chain}"), &format!("{chain}{key}")).is_ok());
        check(&chain, &other_key, CertificateError::Mismatch);
        check(&format!("{other_chain}{chain}"), &key, CertificateError::Mismatch);
        check("", &key, CertificateError::Chain);
        check(&key, &key, CertificateError::Chain);
        check(&chain[..chain.len() / 2], &key, CertificateError::Chain);
        let spoilt = chain.replacen("MII", "AAA", 1);
        check(&spoilt, &key, CertificateError::Chain);
        check(&chain, "", CertificateError::Key);
        check(&chain, &chain, CertificateError::Key);
        check(&chain, &key[..key.len() / 2], CertificateError::Key);
    }

    #[test]
    fn expiry_is_the_end_of_the_certificates_validity() {
        // Dates are written in another form from 2050 on (RFC 5280, section 4.1.2.5).
        for year in [2027_u16, 2049, 2050, 4096] {
            let made = granary_kit::certificate::SelfSigned::until(year.into());
            let read = Certificate::from_pem(made.chain.as_bytes(), made.key.as_bytes()).unwrap();
            assert_eq!(read.expires.to_string(), format!("{year}-01-01T00:00:00Z"));
        }
    }
}
