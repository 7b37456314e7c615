//! What a server shows to a client that pins its key, and the text forms of keys and pins.

use std::sync::{Arc, OnceLock};

use agentnet::os::tls::{Pin, ServerKey, pinned_client};
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection,
    crypto::aws_lc_rs::{default_provider, sign::any_ecdsa_type},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
    version::TLS13,
};

use super::input::Input;
use super::memory::bounded;

/// Two keys of P-256 that nothing else uses; certificates of both stand in the corpus.
const KEYS: [&str; 2] = [
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgDGgNPJ2dsS1L0ydgJTPtCCwkVxTu\
     0UKTyyfQWEOeZGOhRANCAATuNWaQVzvcjvtIOpdosx0srHDzwgDJlIaSc7mWow2PRBkX4lLRNWK9\
     cLuL2YAjLyfN/RmKm8Q8EY5t7sUbmqmm",
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgs1trt0G0eA5+6g00TFU/2IbcgznN\
     7j5lCh28RjmyjkyhRANCAAS/az5XHLihSsHZIfq3ZorjoY9SD1QU/YLZe5LpU5Qpj5wnTp4hIVjN\
     LajHFxeY4TNZs4IDk764zdSUGgcImd6S",
];

/// More round trips than a handshake of TLS 1.3 takes.
const MAX_ROUNDS: usize = 8;

/// A client that pins the first key, and what servers sign with.
struct Ends {
    client: Arc<ClientConfig>,
    keys: [Arc<dyn SigningKey>; 2],
}

impl Ends {
    fn get() -> &'static Self {
        static ENDS: OnceLock<Ends> = OnceLock::new();
        ENDS.get_or_init(|| {
            let pem = format!(
                "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
                KEYS[0]
            );
            let pin = ServerKey::from_pem(&pem).expect("it is a key").pin();
            let client = pinned_client(pin).expect("the settings are sound");
            let keys = KEYS.map(|key| {
                let der = STANDARD.decode(key).expect("it is base64");
                let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der));
                any_ecdsa_type(&der).expect("it is a key of P-256")
            });
            Self {
                client: Arc::new(client),
                keys,
            }
        })
    }

    /// Returns the settings of a server that shows `certificate` and signs with key number `n`.
    fn server(&self, n: usize, certificate: &[u8]) -> Arc<ServerConfig> {
        let shown = vec![CertificateDer::from(certificate.to_vec())];
        let shown = CertifiedKey::new(shown, self.keys[n].clone());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        Arc::new(config)
    }
}

/// Any certificate: only a server that signs with the pinned key is believed.
pub(super) fn certificate(data: &[u8]) {
    let ends = Ends::get();
    let mut input = Input::new(data);
    let n = usize::from(input.byte() & 1);
    let server = ends.server(n, input.rest());
    let name = ServerName::try_from("registry.test").expect("it is a name");
    let client = ClientConnection::new(ends.client.clone(), name);
    let mut client = client.expect("the settings are sound");
    let mut server = ServerConnection::new(server).expect("the settings are sound");
    for _ in 0..MAX_ROUNDS {
        if !client.is_handshaking() && !server.is_handshaking() {
            break;
        }
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("memory takes all");
        assert!(takes(&mut server, &wire), "our client is honest");
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory takes all");
        }
        if !takes(&mut client, &wire) {
            return;
        }
    }
    assert!(!client.is_handshaking(), "the client waits for more");
    assert_eq!(n, 0, "a server without the pinned key is believed");
}

/// Gives one end all that the other sent; false when it does not go on.
fn takes<T>(end: &mut ConnectionCommon<T>, mut wire: &[u8]) -> bool {
    while !wire.is_empty() {
        end.read_tls(&mut wire).expect("memory gives all");
        if end.process_new_packets().is_err() {
            return false;
        }
    }
    true
}

/// A key of the registry's in PEM, or a pin.
pub(super) fn key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(pin) = text.parse::<Pin>() {
        assert_eq!(pin.to_string(), text, "two texts of one pin");
    }
    let read = bounded(data, 16, 16 * 1024, || ServerKey::from_pem(text));
    if let Ok(key) = read {
        let again = ServerKey::from_pem(&key.to_pem()).expect("what was written is read");
        assert_eq!(again.pin(), key.pin());
    }
}
