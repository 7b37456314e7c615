use std::{
    io,
    net::{self, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use tokio::{net::UdpSocket, time::timeout_at};

use crate::os::udp::{UdpPort, bind_at};
use crate::os::{clock, random};
use crate::wire::stun::{self, Change, Message, Origin, Transaction};

/// When a question is asked, again until it is answered, and how long all takes at most: a far server
/// answers within 0.4 s, and two lost datagrams of three are seldom.
const ASKED_AT: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_millis(700),
];
const PATIENCE: Duration = Duration::from_millis(1200);

const MAX_DATAGRAM: usize = 2048; // bytes

/// What a server is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) to: SocketAddr,
    pub(super) kind: Kind,
}

/// What is to be found out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// Where we are seen, and what other endpoints the server has.
    Where,
    /// The same, answered from another endpoint.
    From(Change),
    /// Whether a datagram of this length, in bytes of UDP payload, arrives.
    Length(usize),
}

impl Question {
    pub(super) const fn whereabouts(to: SocketAddr) -> Self {
        Self {
            to,
            kind: Kind::Where,
        }
    }
}

/// What came of a question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Answered(Answer),
    /// The server does not do what it was asked.
    Refused,
    Silent,
}

/// What a server said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Answer {
    pub(super) mapped: SocketAddr,
    pub(super) origin: Origin,
    pub(super) rtt: Duration,
}

impl Outcome {
    pub(super) const fn answer(&self) -> Option<Answer> {
        match self {
            Self::Answered(answer) => Some(*answer),
            Self::Refused | Self::Silent => None,
        }
    }
}

/// A socket that asks.
#[derive(Debug)]
pub(super) struct Asker {
    udp: UdpPort,
    /// The same socket, as what tells that it is readable.
    socket: UdpSocket,
}

impl Asker {
    /// Opens a socket of one IP version, on any free port.
    pub(super) fn open(is_v4: bool) -> io::Result<Self> {
        let any = if is_v4 {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
        } else {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
        };
        let udp = bind_at(any).map_err(io::Error::other)?;
        udp.forbid_fragments();
        let same = net::UdpSocket::from(udp.as_fd().try_clone_to_owned()?);
        Ok(Self {
            udp,
            socket: UdpSocket::from_std(same)?,
        })
    }

    pub(super) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Asks all at once, and returns what came of each.
    pub(super) async fn ask(&self, questions: &[Question]) -> Vec<Outcome> {
        let begun = clock::now();
        let mut asked = questions.iter().map(Asked::new).collect::<Vec<_>>();
        let ends = ASKED_AT.iter().skip(1).copied().chain([PATIENCE]);
        for end in ends {
            for one in asked
                .iter_mut()
                .filter(|one| one.outcome == Outcome::Silent)
            {
                let request = one.request(clock::now());
                // What is too long for the interface does not arrive, which is what is asked.
                if let Err(error) = self.udp.send_to(&request, one.question.to) {
                    tracing::debug!(%error, to = %one.question.to, "Not asked");
                }
            }
            self.listen(&mut asked, begun + end).await;
        }
        asked.into_iter().map(|one| one.outcome).collect()
    }

    /// Takes answers until all are there or the time is over.
    async fn listen(&self, asked: &mut [Asked], end: Instant) {
        let mut buffer = [0; MAX_DATAGRAM];
        while asked.iter().any(|one| one.outcome == Outcome::Silent) {
            let received = timeout_at(end.into(), self.socket.recv_from(&mut buffer)).await;
            match received {
                Ok(Ok((length, from))) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    take(asked, from, bytes);
                }
                // An error about an earlier datagram, as that nobody listens there.
                Ok(Err(error)) => tracing::debug!(%error, "Receive error"),
                Err(_elapsed) => return,
            }
        }
    }

    /// Tells whether a request of ours to `to`, sent by another socket, comes in here.
    pub(super) async fn hears(&self, other: &Self, to: SocketAddr) -> bool {
        let begun = clock::now();
        let transaction = transaction();
        let request = stun::request(&transaction);
        let ends = ASKED_AT.iter().skip(1).copied().chain([PATIENCE]);
        let mut buffer = [0; MAX_DATAGRAM];
        for end in ends {
            if let Err(error) = other.udp.send_to(&request, to) {
                tracing::debug!(%error, %to, "Not sent");
            }
            let end = begun + end;
            while let Ok(received) =
                timeout_at(end.into(), self.socket.recv_from(&mut buffer)).await
            {
                let length = received.map_or(0, |(length, _)| length);
                if buffer.get(..length) == Some(&request[..]) {
                    return true;
                }
            }
        }
        false
    }
}

/// A question under way.
#[derive(Debug)]
struct Asked {
    question: Question,
    /// Of each time it was sent.
    sent: Vec<(Transaction, Instant)>,
    outcome: Outcome,
}

impl Asked {
    const fn new(question: &Question) -> Self {
        Self {
            question: *question,
            sent: Vec::new(),
            outcome: Outcome::Silent,
        }
    }

    fn request(&mut self, now: Instant) -> Vec<u8> {
        let transaction = transaction();
        self.sent.push((transaction, now));
        match self.question.kind {
            Kind::Where => stun::request_from(&transaction, Change::NONE),
            Kind::From(change) => stun::request_from(&transaction, change),
            Kind::Length(length) => stun::request_of(&transaction, length),
        }
    }

    /// Returns when what is answered was sent; None when that is no question of this one.
    fn sent(&self, answered: &Transaction) -> Option<Instant> {
        let mut all = self.sent.iter();
        all.find(|(sent, _)| sent == answered).map(|(_, at)| *at)
    }

    /// Tells whether an answer from there answers the question.
    fn is_from_where_asked(&self, from: SocketAddr) -> bool {
        let to = self.question.to;
        match self.question.kind {
            Kind::Where | Kind::Length(_) => from == to,
            Kind::From(change) => {
                (from.ip() != to.ip()) == change.address
                    && (from.port() != to.port()) == change.port
            }
        }
    }
}

fn take(asked: &mut [Asked], from: SocketAddr, bytes: &[u8]) {
    let (transaction, found) = match stun::parse(bytes) {
        Some(Message::Success {
            transaction,
            mapped,
            origin,
        }) => (transaction, Some((mapped, origin))),
        Some(Message::Refused(transaction)) => (transaction, None),
        Some(Message::Request(_)) | None => return,
    };
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let mut all = asked.iter_mut();
    let Some((sent, one)) = all.find_map(|one| Some((one.sent(&transaction)?, one))) else {
        return;
    };
    one.outcome = match found {
        Some((mapped, origin)) if one.is_from_where_asked(from) => Outcome::Answered(Answer {
            mapped,
            origin,
            rtt: clock::now().saturating_duration_since(sent),
        }),
        // A server that does not know the question answers from where it was asked.
        Some(_) | None => Outcome::Refused,
    };
}

fn transaction() -> Transaction {
    let mut transaction = Transaction::default();
    for (byte, random) in transaction.iter_mut().zip(random::seed()) {
        *byte = random;
    }
    transaction
}
