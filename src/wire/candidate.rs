//! Candidates: where an agent may be reached without a gateway (protocol.md section 6).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Candidates in one message; two families of a few interfaces and what STUN sees.
pub const MAX_CANDIDATES: usize = 16;

/// How an agent came to know an endpoint of its own.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// An address of one of its interfaces.
    Host,
    /// As a gateway or STUN server sees it.
    Reflexive,
    /// Opened by NAT-PMP, PCP or UPnP-IGD.
    Mapped,
    /// Guessed from how the NAT counts.
    Predicted,
}

/// One endpoint of an agent.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Candidate {
    pub kind: Kind,
    pub endpoint: SocketAddr,
    /// The higher, the sooner it is tried.
    pub priority: u32,
}

/// All endpoints of an agent; a higher `seq` replaces a lower one of the same session.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Candidates {
    pub seq: u64,
    pub list: Vec<Candidate>,
}

impl Candidates {
    /// Appends the body; candidates beyond [`MAX_CANDIDATES`] are left out.
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        let list = self.list.get(..MAX_CANDIDATES).unwrap_or(&self.list);
        body.extend(self.seq.to_be_bytes());
        body.push(u8::try_from(list.len()).unwrap_or_default());
        for candidate in list {
            body.push(candidate.kind.code());
            put_endpoint(candidate.endpoint, body);
            body.extend(candidate.priority.to_be_bytes());
        }
    }

    /// Parses a body; candidates of kinds of a later version are left out.
    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let (seq, rest) = body.split_first_chunk()?;
        let (count, mut rest) = rest.split_first()?;
        if usize::from(*count) > MAX_CANDIDATES {
            return None;
        }
        let mut list = Vec::with_capacity(usize::from(*count));
        for _ in 0..*count {
            let (kind, after) = rest.split_first()?;
            let (endpoint, after) = take_endpoint(after)?;
            let (priority, after) = after.split_first_chunk()?;
            rest = after;
            list.extend(Kind::from_code(*kind).map(|kind| Candidate {
                kind,
                endpoint,
                priority: u32::from_be_bytes(*priority),
            }));
        }
        let seq = u64::from_be_bytes(*seq);
        Some(Self { seq, list })
    }
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Host => 1,
            Self::Reflexive => 2,
            Self::Mapped => 3,
            Self::Predicted => 4,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Host),
            2 => Some(Self::Reflexive),
            3 => Some(Self::Mapped),
            4 => Some(Self::Predicted),
            _ => None,
        }
    }
}

/// Appends an address (IPv4 mapped) and a port.
pub(super) fn put_endpoint(endpoint: SocketAddr, body: &mut Vec<u8>) {
    let address = match endpoint.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    body.extend(address.octets());
    body.extend(endpoint.port().to_be_bytes());
}

/// Takes an address and a port off the front.
pub(super) fn take_endpoint(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (address, rest) = bytes.split_first_chunk::<16>()?;
    let (port, rest) = rest.split_first_chunk()?;
    let address = IpAddr::V6(Ipv6Addr::from(*address)).to_canonical();
    Some((SocketAddr::new(address, u16::from_be_bytes(*port)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(n: u8) -> Candidate {
        let kinds = [Kind::Host, Kind::Reflexive, Kind::Mapped, Kind::Predicted];
        Candidate {
            kind: kinds[usize::from(n) % 4],
            endpoint: SocketAddr::new([192, 0, 2, n].into(), 16200),
            priority: u32::from(n) << 24,
        }
    }

    fn body(candidates: &Candidates) -> Vec<u8> {
        let mut body = Vec::new();
        candidates.encode(&mut body);
        body
    }

    #[test]
    fn candidates_of_both_families_survive_the_wire() {
        let mut list = (0..15).map(candidate).collect::<Vec<_>>();
        list.push(Candidate {
            kind: Kind::Host,
            endpoint: "[2001:db8::7]:1".parse().unwrap(),
            priority: 0,
        });
        let candidates = Candidates { seq: 9, list };

        let read = Candidates::decode(&body(&candidates));

        assert_eq!(read, Some(candidates));
    }

    #[test]
    fn more_than_sixteen_are_neither_written_nor_read() {
        let list = (0..20).map(candidate).collect();
        let written = body(&Candidates { seq: 1, list });

        let read = Candidates::decode(&written).unwrap();
        assert_eq!(read.list.len(), MAX_CANDIDATES);

        let mut more = written;
        more[8] = 17;
        more.extend([1; 23]);
        assert_eq!(Candidates::decode(&more), None);
    }

    #[test]
    fn an_unknown_kind_is_left_out_and_a_cut_list_refused() {
        let list = vec![candidate(1), candidate(2)];
        let mut bytes = body(&Candidates { seq: 1, list });
        bytes[9] = 99;

        let read = Candidates::decode(&bytes).unwrap();

        assert_eq!(read.list, [candidate(2)]);
        assert_eq!(Candidates::decode(&bytes[..bytes.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_candidates_or_none(bytes in prop::collection::vec(any::<u8>(), 0..420)) {
            if let Some(read) = Candidates::decode(&bytes) {
                prop_assert!(read.list.len() <= MAX_CANDIDATES);
                prop_assert_eq!(Candidates::decode(&body(&read)), Some(read));
            }
        }
    }
}
