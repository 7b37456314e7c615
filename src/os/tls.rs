//! TLS 1.3 between agentnet and its registry: a persistent key, pinned by its clients.
//!
//! Nobody needs a certificate authority here. The registry shows a self-signed certificate and
//! proves its key; the client compares that key with the pin it was given together with the
//! domain's root key, and looks at nothing else of the certificate.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::ParsedCertificate,
    version::TLS13,
};
use thiserror::Error;
use zeroize::Zeroizing;

const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

/// What is wrong with a TLS key or pin.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("not a PKCS#8 private key of P-256 in PEM")]
    BadKey,
    #[error("not a pin (SHA-256 of a public key in unpadded base64url)")]
    BadPin,
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// SHA-256 of a TLS key's SubjectPublicKeyInfo; text form base64url without padding.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Pin([u8; 32]);

impl Pin {
    fn of(spki: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, spki).as_ref());
        Self(out)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Pin {
    type Err = TlsError;

    fn from_str(text: &str) -> Result<Self, TlsError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TlsError::BadPin)?;
        Ok(Self(bytes.try_into().map_err(|_| TlsError::BadPin)?))
    }
}

/// A server's persistent P-256 key.
pub struct ServerKey(KeyPair);

impl ServerKey {
    /// Makes a new key from the system's randomness.
    pub fn generate() -> Result<Self, TlsError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads a key back from [`Self::to_pem`].
    pub fn from_pem(pem: &str) -> Result<Self, TlsError> {
        let body = pem.trim().strip_prefix(PEM_BEGIN);
        let body = body.and_then(|rest| rest.strip_suffix(PEM_END));
        let base64 = Zeroizing::new(body.ok_or(TlsError::BadKey)?.replace(['\n', '\r'], ""));
        let der = STANDARD.decode(base64.as_bytes());
        let der = Zeroizing::new(der.map_err(|_| TlsError::BadKey)?);
        let key = PrivatePkcs8KeyDer::from(der.as_slice());
        KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|_| TlsError::BadKey)
    }

    /// Returns the secret key as PKCS#8 in PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let base64 = Zeroizing::new(STANDARD.encode(self.0.serialized_der()));
        let mut pem = Zeroizing::new(format!("{PEM_BEGIN}\n"));
        for line in base64.as_bytes().chunks(64) {
            pem.extend(line.iter().copied().map(char::from));
            pem.push('\n');
        }
        pem.push_str(PEM_END);
        pem.push('\n');
        pem
    }

    /// Returns what clients pin.
    pub fn pin(&self) -> Pin {
        Pin::of(&self.0.subject_public_key_info())
    }

    /// Returns the settings of a server with this key and a certificate it signs for `hosts`.
    pub fn server_config(&self, hosts: &[String]) -> Result<Arc<ServerConfig>, TlsError> {
        let mut params = CertificateParams::new(hosts.to_vec())?;
        params.distinguished_name = DistinguishedName::new();
        let certificate = params.self_signed(&self.0)?.der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.0.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerKey({})", self.pin())
    }
}

/// Returns the settings of a client that believes the server with `pin` and no other.
pub fn pinned_client(pin: Pin) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let verifier = PinnedServer {
        pin,
        provider: provider.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Believes one public key, whatever the certificate around it says.
#[derive(Debug)]
struct PinnedServer {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let spki = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
        if Pin::of(&spki) != self.pin {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConnection, ServerConnection};

    /// Tells why the two ends cannot shake hands; None when they can.
    fn refusal(server: &ServerKey, client: ClientConfig) -> Option<rustls::Error> {
        let config = server.server_config(&["registry.test".to_owned()]).unwrap();
        let name = ServerName::try_from("other.test").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(config).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            if let Err(error) = client.process_new_packets() {
                return Some(error);
            }
        }
        None
    }

    /// P-052: the pin alone decides, no authority and no name.
    #[test]
    fn a_client_believes_the_pinned_key_only() {
        let (server, other) = (
            ServerKey::generate().unwrap(),
            ServerKey::generate().unwrap(),
        );

        let (right, wrong) = [&server, &other]
            .map(|key| refusal(&server, pinned_client(key.pin()).unwrap()))
            .into();

        assert_eq!(right, None);
        let refused = CertificateError::ApplicationVerificationFailure;
        assert_eq!(wrong, Some(refused.into()));
    }

    #[test]
    fn a_key_and_its_pin_survive_text() {
        let key = ServerKey::generate().unwrap();

        let read = ServerKey::from_pem(&key.to_pem()).unwrap();

        assert_eq!(read.pin(), key.pin());
        assert_eq!(key.pin().to_string().parse::<Pin>().unwrap(), key.pin());
        assert!(ServerKey::from_pem("-----BEGIN PRIVATE KEY-----").is_err());
        assert!(ServerKey::from_pem(&key.to_pem()[..120]).is_err());
        assert!("short".parse::<Pin>().is_err());
    }
}
