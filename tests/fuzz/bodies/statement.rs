//! Signed statements: as they come, and with any claims behind a signature that holds.

use agentnet::id::{IdentityKey, UnixTime};
use agentnet::registry::auth;
use agentnet::statement::{
    Admission, Auth, Claims, Consent, Gateway, Grant, Head, MAX_STATEMENT, Record, Registry,
    Request, Revocation, Statement,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};

use super::input::Input;
use super::memory::bounded;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// Whoever signs here; its did:key stands in the corpus.
const SEED: [u8; 32] = [1; 32];

/// A statement of the kind that the first byte names.
///
/// By the second byte the rest is a statement, or header and claims (a line each) to be signed.
pub(super) fn statement(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, is_signed) = (input.byte(), input.byte() & 1 == 1);
    let rest = input.rest();
    let text = if is_signed {
        signed(rest)
    } else {
        String::from_utf8_lossy(rest).into_owned()
    };
    match kind % 9 {
        0 => open::<Admission>(&text),
        1 => open::<Auth>(&text),
        2 => open::<Consent>(&text),
        3 => open::<Gateway>(&text),
        4 => open::<Grant>(&text),
        5 => open::<Record>(&text),
        6 => open::<Registry>(&text),
        7 => open::<Request>(&text),
        _ => open::<Revocation>(&text),
    }
    if let Ok(proof) = auth::open(&text, NOW) {
        let claims = proof.claims();
        let request = auth::Signed {
            registry: claims.aud,
            method: "GET",
            target: "/v1/watch",
            body: b"",
        };
        let is_for_it = claims.htm == "GET" && claims.htu == "/v1/watch";
        assert!(is_for_it || auth::check(&proof, &request).is_err());
    }
}

/// Signs what need not be a statement at all.
fn signed(text: &[u8]) -> String {
    let mut lines = text.splitn(2, |b| *b == b'\n');
    let mut part = || URL_SAFE_NO_PAD.encode(lines.next().unwrap_or_default());
    let signed = format!("{}.{}", part(), part());
    let signature = SigningKey::from_bytes(&SEED).sign(signed.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(signature.to_bytes());
    format!("{signed}.{signature}")
}

fn open<C: Claims + PartialEq>(text: &str) {
    let opened = bounded(text.as_bytes(), 128, 64 * 1024, || {
        Statement::<C>::open(text)
    });
    let Ok(statement) = opened else { return };
    assert!(text.len() <= MAX_STATEMENT);
    assert_eq!(statement.text(), text);
    let json = serde_json::to_string(&statement).expect("a statement is a text");
    let again = serde_json::from_str::<Statement<C>>(&json).expect("it holds");
    assert_eq!((again.hash(), &again), (statement.hash(), &statement));
    assert!(
        !text.contains(['=', '+', '/', '\n', ' ']),
        "two texts of one statement"
    );

    let checked = statement.check_time(NOW);
    let is_now = statement.issued() <= NOW && statement.expires() > NOW;
    assert!(is_now || checked.is_err() || statement.issued().since(NOW).as_secs() <= 60);
    let head = Head {
        subject: statement.subject(),
        network: statement.network(),
        issued: statement.issued(),
        expires: statement.expires(),
        seq: statement.seq(),
    };
    let key = IdentityKey::from_seed(SEED);
    // What was 16 KiB may be longer in our spelling.
    if let Ok(ours) = Statement::sign(&key, head, statement.claims().clone()) {
        let ours = Statement::<C>::open(ours.text()).expect("we signed it");
        assert_eq!(ours.claims(), statement.claims());
        assert_eq!((ours.seq(), ours.expires()), (head.seq, head.expires));
    }
}
