use std::{collections::VecDeque, time::Duration};

use reqwest::Response;

use crate::id::NetworkId;
use crate::registry::client::ClientError;
use crate::registry::sse::{Message, Reader};
use crate::wire::api::registry::{EventKind, NetworkEvent, StatementEvent};

/// Three heartbeats of the registry missed: the connection is dead, whatever TCP thinks.
const SILENCE: Duration = Duration::from_secs(45);

/// One event of the watch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WatchEvent {
    /// Where to resume once this event is handled; None when it moves no cursor.
    pub id: Option<String>,
    pub kind: EventKind,
    /// The network the statement is of; None for statements of the domain.
    pub network: Option<NetworkId>,
    /// The statement, yet to be checked: a root grant for `network`, empty for `reset` and `live`.
    pub statement: String,
}

/// The events of one open watch.
#[derive(Debug)]
pub struct EventStream {
    url: String,
    response: Response,
    reader: Reader,
    ready: VecDeque<WatchEvent>,
}

impl EventStream {
    pub(super) fn new(url: String, response: Response) -> Self {
        Self {
            url,
            response,
            reader: Reader::default(),
            ready: VecDeque::new(),
        }
    }

    /// Returns the next event; an error ends the stream, and the caller opens it again.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was read is kept in the stream.
    pub async fn next(&mut self) -> Result<WatchEvent, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let piece = tokio::time::timeout(SILENCE, self.response.chunk()).await;
            let piece = piece.map_err(|_| ClientError::silent(&self.url))?;
            let piece = piece.map_err(|error| ClientError::unreachable(&self.url, &error))?;
            let piece = piece.ok_or_else(|| ClientError::Unreachable {
                url: self.url.clone(),
                why: "the event stream ended".to_owned(),
            })?;
            let messages = self.reader.push(&piece);
            let messages = messages.map_err(|error| ClientError::malformed(&error.to_string()))?;
            self.ready
                .extend(messages.into_iter().filter_map(WatchEvent::read));
        }
    }
}

impl WatchEvent {
    /// Returns the event in a message; None for kinds of newer registries and for nonsense.
    pub fn read(message: Message) -> Option<Self> {
        let kind = EventKind::from_name(&message.event)?;
        let (network, statement) = match kind {
            EventKind::Live | EventKind::Reset => (None, String::new()),
            EventKind::Network => {
                let data = serde_json::from_str::<NetworkEvent>(&message.data).ok()?;
                (Some(data.network), data.grant)
            }
            EventKind::Consent
            | EventKind::Gateway
            | EventKind::Record
            | EventKind::Request
            | EventKind::Revocation => {
                let data = serde_json::from_str::<StatementEvent>(&message.data).ok()?;
                (data.network, data.statement)
            }
        };
        Some(Self {
            id: message.id,
            kind,
            network,
            statement,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: &str, data: &str) -> Message {
        Message {
            id: Some("1".to_owned()),
            event: event.to_owned(),
            data: data.to_owned(),
        }
    }

    /// headscale#3346: one bad event does not block the others.
    #[test]
    fn nonsense_and_unknown_kinds_are_passed_over() {
        assert_eq!(WatchEvent::read(message("policy", "{}")), None);
        assert_eq!(WatchEvent::read(message("record", "{")), None);
        let record =
            WatchEvent::read(message("record", r#"{"statement":"a.b.c","more":1}"#)).unwrap();
        assert_eq!(record.statement, "a.b.c");
        assert_eq!(
            WatchEvent::read(message("live", "")).unwrap().kind,
            EventKind::Live
        );
    }
}
