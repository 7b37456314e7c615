//! Pure: those who are not attached yet. What they cost waits until there is time for it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use crate::engine::session::receiver_index;
use crate::gateway::attach::Guested;
use crate::gateway::core::Core;
use crate::id::UnixTime;
use crate::wire::datagram::WireGuard;
use crate::wire::drop::DropReason;

/// Messages of strangers of one kind that wait for their turn: a fifth of a second's, at most 2 KB each.
const MAX_WAITING: usize = 1024;

/// A message whose sender was screened.
#[derive(Debug)]
struct Message {
    from: SocketAddr,
    kind: WireGuard,
    bytes: Vec<u8>,
}

/// Who waits: those whose handshake was answered come first, or the work that it took would be lost.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    sessions: VecDeque<Message>,
    handshakes: VecDeque<Message>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.handshakes.is_empty()
    }

    fn next(&mut self) -> Option<Message> {
        let next = self.sessions.pop_front();
        next.or_else(|| self.handshakes.pop_front())
    }

    /// Adds a message; false when as many of its kind wait as may.
    fn add(&mut self, message: Message) -> bool {
        let queue = if message.kind == WireGuard::Initiation {
            &mut self.handshakes
        } else {
            &mut self.sessions
        };
        let has_room = queue.len() < MAX_WAITING;
        if has_room {
            queue.push_back(message);
        }
        has_room
    }
}

impl Core {
    /// Takes a WireGuard message, of another gateway or of one who wants to attach.
    pub(super) fn handle_wireguard(
        &mut self,
        from: SocketAddr,
        kind: WireGuard,
        bytes: &[u8],
        now: Instant,
    ) {
        match kind {
            WireGuard::Initiation => {
                if let Err(guested) = self.guests.screen(from, bytes, now) {
                    match guested {
                        Guested::Dropped(reason) => self.drops.count(reason),
                        Guested::Send(cookie) => self.send(from, cookie),
                        Guested::Attach { .. } | Guested::Gateway { .. } | Guested::Nothing => {}
                    }
                    return;
                }
            }
            WireGuard::Response | WireGuard::CookieReply | WireGuard::Transport => {
                let index = receiver_index(bytes);
                if let Some(id) = index.and_then(|index| self.mesh.of_index(index)) {
                    return self.handle_peer(id, kind, (from, bytes), now);
                }
                if kind != WireGuard::Transport {
                    self.drops.count(DropReason::HandshakeUnknown);
                    return;
                }
            }
        }
        let bytes = bytes.to_vec();
        if !self.waiting.add(Message { from, kind, bytes }) {
            self.drops.count(DropReason::HandshakeLimited);
        }
    }

    /// Tells whether a stranger waits for its turn.
    pub fn has_strangers(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives the stranger that waits longest its turn, which may take a thousand frames' time.
    pub fn handle_stranger(&mut self, now: Instant, unix: UnixTime) {
        self.turn(now, unix);
        self.settle(now, unix);
    }

    pub(super) fn turn(&mut self, now: Instant, unix: UnixTime) {
        let Some(Message { from, kind, bytes }) = self.waiting.next() else {
            return;
        };
        let guested = match kind {
            WireGuard::Initiation => match self.guests.initiator(&bytes) {
                Some(key) => match self.mesh.of_key(&key) {
                    Some(id) => return self.handle_peer(id, kind, (from, &bytes), now),
                    None => self.guests.begin(key, &bytes, now),
                },
                None => Guested::Dropped(DropReason::HandshakeUnknown),
            },
            WireGuard::Response | WireGuard::CookieReply | WireGuard::Transport => {
                self.guests.handle_transport(&bytes, now)
            }
        };
        match guested {
            Guested::Attach { key, record } => self.attach(from, key, record, now, unix),
            Guested::Dropped(reason) => self.drops.count(reason),
            Guested::Gateway { key, statement } => {
                self.introduce(from, key, &statement, (now, unix));
            }
            Guested::Nothing => {}
            Guested::Send(bytes) => self.send(from, bytes),
        }
    }
}
