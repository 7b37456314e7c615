//! What comes over HTTP: the bodies of both interfaces, and the registry's event stream.

use std::fmt;

use agentnet::registry::client::WatchEvent;
use agentnet::registry::sse::Reader;
use agentnet::wire::api::{local, problem::Problem, registry};
use serde::{Serialize, de::DeserializeOwned};

use super::input::Input;
use super::memory::bounded;

/// A stream, cut by its first bytes: where it is cut does not matter.
pub(super) fn stream(data: &[u8]) {
    let mut input = Input::new(data);
    let cuts = input.chunk();
    let stream = input.rest();
    // A message without a line of its own is a few bytes; each has three texts.
    let whole = bounded(stream, 80, 64 * 1024, || Reader::default().push(stream));
    let (mut reader, mut messages, mut rest) = (Reader::default(), Vec::new(), stream);
    let mut refused = None;
    for cut in cuts.iter().map(|cut| usize::from(*cut)).chain([usize::MAX]) {
        let (piece, later) = rest.split_at(cut.min(rest.len()));
        rest = later;
        match reader.push(piece) {
            Ok(more) => messages.extend(more),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    match (whole, refused) {
        (Ok(whole), None) => assert_eq!(messages, whole),
        (whole, refused) => assert_eq!(whole.err(), refused),
    }
    for message in messages {
        let data = message.data.clone();
        assert!(message.event.len() + data.len() <= registry::MAX_EVENT);
        let event = bounded(data.as_bytes(), 64, 4096, || WatchEvent::read(message));
        if let Some(event) = event {
            assert!(event.statement.len() <= data.len());
        }
    }
}

/// A body of the type that the first byte names.
pub(super) fn api(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = usize::from(input.byte());
    let bodies: &[fn(&[u8])] = &[
        survives::<Problem>,
        survives::<registry::ActivateNetwork>,
        survives::<registry::ConsentBody>,
        survives::<registry::CreateNetwork>,
        survives::<registry::DomainInfo>,
        survives::<registry::GatewayBody>,
        survives::<registry::GatewayEnrolled>,
        survives::<registry::GrantBody>,
        survives::<registry::Joined>,
        survives::<registry::NetworkCreated>,
        survives::<registry::NetworkEvent>,
        survives::<registry::NetworkList>,
        survives::<registry::RecordBody>,
        survives::<registry::Refreshed>,
        survives::<registry::RequestBody>,
        survives::<registry::Resolved>,
        survives::<registry::RevocationBody>,
        survives::<registry::StatementEvent>,
        survives::<registry::TokenList>,
        survives::<local::AutoRemove>,
        survives::<local::AutoRule>,
        survives::<local::PingRequest>,
        survives::<local::TrustApprove>,
        survives::<local::TrustName>,
        survives::<local::TrustAwait>,
        survives::<local::TrustRequest>,
        survives::<local::WhoisQuery>,
        survives::<local::Versioned<local::Joined>>,
        survives::<local::Versioned<local::Peers>>,
        survives::<local::Versioned<local::Pending>>,
        survives::<local::Versioned<local::PingReply>>,
        survives::<local::Versioned<local::Status>>,
        survives::<local::Versioned<local::TrustList>>,
        survives::<local::Versioned<local::Whois>>,
        survives::<local::OfAgent>,
        survives::<local::PathQuery>,
        survives::<local::Versioned<local::AutoRules>>,
        survives::<local::Versioned<local::Down>>,
        survives::<local::Versioned<local::Left>>,
        survives::<local::Versioned<local::PathReport>>,
        survives::<local::Versioned<local::TrustChanged>>,
        survives::<registry::Page>,
        survives::<registry::Resolve>,
        survives::<registry::Watch>,
    ];
    let rest = input.rest();
    bodies[kind % bodies.len()](rest);
    let _ = bounded(rest, 64, 16 * 1024, || {
        serde_json::from_slice::<local::JoinRequest>(rest).is_ok()
    });
}

fn survives<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(body: &[u8]) {
    let read = bounded(body, 128, 16 * 1024, || serde_json::from_slice::<T>(body));
    let Ok(value) = read else { return };
    let written = serde_json::to_vec(&value).expect("it came out of JSON");
    assert_eq!(serde_json::from_slice::<T>(&written).ok(), Some(value));
}
