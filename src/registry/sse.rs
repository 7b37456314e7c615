//! Pure: reading an event stream (WHATWG HTML section 9.2.6) piece by piece, within bounds.

use thiserror::Error;

use crate::wire::api::registry::MAX_EVENT;

/// Longest id that is kept; a registry's are an epoch and two numbers.
const MAX_ID: usize = 128; // bytes

/// One message of the stream.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Message {
    /// The `id:`; None when the message moves no cursor.
    pub id: Option<String>,
    pub event: String,
    pub data: String,
}

/// A message that no registry sends.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SseError {
    #[error("an event is larger than {MAX_EVENT} bytes")]
    TooLong,
    #[error("an event is not UTF-8")]
    NotText,
}

/// Collects bytes into messages; holds one unfinished message at most.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    message: Message,
    after_cr: bool,
}

impl Reader {
    /// Takes the next bytes and returns the messages they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, SseError> {
        let mut done = Vec::new();
        for byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => done.extend(self.end_line()?),
                other if self.held() < MAX_EVENT => self.line.push(*other),
                _ => return Err(SseError::TooLong),
            }
        }
        Ok(done)
    }

    fn held(&self) -> usize {
        self.line.len() + self.message.data.len() + self.message.event.len()
    }

    fn end_line(&mut self) -> Result<Option<Message>, SseError> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            return Ok((!message.event.is_empty() || !message.data.is_empty()).then_some(message));
        }
        let line = String::from_utf8(line).map_err(|_| SseError::NotText)?;
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if is_id(value) => self.message.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.message.event),
            "data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            _ => {}
        }
        Ok(None)
    }
}

/// Tells whether a header can carry the id back, as a registry's own can.
///
/// One that cannot be sent would keep the stream from ever being opened again.
fn is_id(value: &str) -> bool {
    value.len() <= MAX_ID && value.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &[u8] = b": beat\n\nid: 7\nevent: record\ndata: {\"a\":\ndata: 1}\r\n\r\nevent:live\ndata\n\nid: 9\nevent: x";

    #[test]
    fn a_stream_is_cut_into_messages() {
        let messages = Reader::default().push(STREAM).unwrap();

        let [record, live] = messages.as_slice() else {
            panic!("{messages:?}");
        };
        assert_eq!(record.id.as_deref(), Some("7"));
        assert_eq!(
            (record.event.as_str(), record.data.as_str()),
            ("record", "{\"a\":\n1}")
        );
        assert_eq!((live.event.as_str(), &live.id), ("live", &None));
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut reader = Reader::default();

        let first = reader.push(&[b'a'; MAX_EVENT]);

        assert_eq!(first, Ok(vec![]));
        assert_eq!(reader.push(b"a"), Err(SseError::TooLong));
    }

    #[test]
    fn endless_data_of_short_lines_is_refused() {
        let mut reader = Reader::default();

        let refused = (0..MAX_EVENT).find_map(|_| reader.push(b"data: aaaa\n").err());

        assert_eq!(refused, Some(SseError::TooLong));
    }

    proptest! {
        #[test]
        fn where_the_stream_is_cut_does_not_matter(cuts in prop::collection::vec(0..STREAM.len(), 0..9)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut reader = Reader::default();
            let mut messages = Vec::new();
            let mut from = 0;
            for to in cuts.into_iter().chain([STREAM.len()]) {
                messages.extend(reader.push(&STREAM[from..to]).unwrap());
                from = to;
            }

            prop_assert_eq!(messages, Reader::default().push(STREAM).unwrap());
        }

        #[test]
        fn any_bytes_give_messages_or_an_error(bytes: Vec<u8>) {
            let messages = Reader::default().push(&bytes).unwrap_or_default();
            prop_assert!(messages.len() <= bytes.len());
        }
    }
}
