//! Which sockets packets are of, by sock_diag(7): its owner's number and its control group.

use std::{
    collections::BTreeSet, fs, io, net::SocketAddrV6, os::unix::fs::MetadataExt, path::PathBuf,
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// Where the unified hierarchy of control groups is, or its part of a host that has the old ones too.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Groups below one that are known.
const MAX_GROUPS: usize = 4096;

/// `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg`, in bytes.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;

/// Where the owner's number is in an answer.
const UID_AT: usize = 64;

/// `SOCK_DIAG_BY_FAMILY`, `NLMSG_ERROR`, `NLM_F_REQUEST`, `INET_DIAG_CGROUP_ID` of the kernel's headers.
const BY_FAMILY: u16 = 20;
const ERROR: u16 = 2;
const IS_REQUEST: u16 = 1;
const CGROUP_ID: u16 = 21;

/// Attributes are that many bytes apart (`NLA_ALIGNTO`).
const ALIGNMENT: usize = 4;

/// Which transport a flow has; the numbers are IP's.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
}

/// A flow as this host sees it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Flow {
    pub protocol: Protocol,
    pub local: SocketAddrV6,
    pub remote: SocketAddrV6,
    /// Index of the device by which its packets come.
    pub device: u32,
}

/// Whose a socket is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SocketOwner {
    /// Number of the user who made it.
    pub user: u32,
    /// Number of the control group it was made in; None on kernels before 5.8.
    pub cgroup: Option<u64>,
}

/// A connection to the kernel's list of the sockets of this network namespace.
pub struct Sockets {
    netlink: Socket,
    asked: u32,
}

impl std::fmt::Debug for Sockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sockets").finish_non_exhaustive()
    }
}

impl Sockets {
    /// Opens the connection.
    pub fn open() -> io::Result<Self> {
        let netlink = Socket::new(NETLINK_SOCK_DIAG)?;
        netlink.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { netlink, asked: 0 })
    }

    /// Returns who owns the socket that gets the packets of a flow; None when there is none.
    pub fn owner(&mut self, flow: &Flow) -> io::Result<Option<SocketOwner>> {
        self.asked = self.asked.wrapping_add(1);
        self.netlink.send(&request(flow, self.asked), 0)?;
        loop {
            let (answer, _) = self.netlink.recv_from_full()?;
            match read(&answer, self.asked)? {
                Read::Other => {}
                Read::Nobody => return Ok(None),
                Read::Owner(owner) => return Ok(Some(owner)),
            }
        }
    }
}

/// Builds the question for the socket of one flow (`inet_diag_get_exact` of the kernel).
fn request(flow: &Flow, number: u32) -> Vec<u8> {
    let family = u8::try_from(nix::libc::AF_INET6).unwrap_or_default();
    // The kernel has source and destination of UDP the other way round, for historical reasons.
    let (source, destination) = match flow.protocol {
        Protocol::Tcp => (flow.local, flow.remote),
        Protocol::Udp => (flow.remote, flow.local),
    };
    let length = u32::try_from(HEADER + REQUEST).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(IS_REQUEST.to_ne_bytes());
    bytes.extend(number.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([family, flow.protocol as u8, 0, 0]);
    let all_states = u32::MAX;
    bytes.extend(all_states.to_ne_bytes());
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend(source.ip().octets());
    bytes.extend(destination.ip().octets());
    bytes.extend(flow.device.to_ne_bytes());
    // No cookie: whichever socket it is.
    bytes.extend([u8::MAX; 8]);
    bytes
}

/// What one message of the kernel says.
#[derive(Debug, Eq, PartialEq)]
enum Read {
    /// It is of another question.
    Other,
    Nobody,
    Owner(SocketOwner),
}

fn read(message: &[u8], number: u32) -> io::Result<Read> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "short answer of sock_diag");
    let u16_at = |at: usize| {
        message
            .get(at..at + 2)?
            .try_into()
            .ok()
            .map(u16::from_ne_bytes)
    };
    let u32_at = |at: usize| {
        message
            .get(at..at + 4)?
            .try_into()
            .ok()
            .map(u32::from_ne_bytes)
    };
    let kind = u16_at(4).ok_or_else(short)?;
    if u32_at(8).ok_or_else(short)? != number {
        return Ok(Read::Other);
    }
    if kind == ERROR {
        let code = u32_at(HEADER).ok_or_else(short)?.cast_signed();
        let error = io::Error::from_raw_os_error(code.saturating_neg());
        return if error.kind() == io::ErrorKind::NotFound {
            Ok(Read::Nobody)
        } else {
            Err(error)
        };
    }
    if kind != BY_FAMILY {
        return Ok(Read::Other);
    }
    let user = u32_at(HEADER + UID_AT).ok_or_else(short)?;
    let attributes = message.get(HEADER + ANSWER..).unwrap_or_default();
    let cgroup = attribute(attributes, CGROUP_ID);
    let cgroup = cgroup
        .and_then(|value| value.try_into().ok())
        .map(u64::from_ne_bytes);
    Ok(Read::Owner(SocketOwner { user, cgroup }))
}

/// Returns the value of an attribute (`struct nlattr`).
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..)?;
    }
}

/// Returns the numbers of a control group and of those below it, by its path below the root; nothing while
/// it is not there.
pub fn cgroups(below_root: &str) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let begun = HIERARCHIES
        .iter()
        .map(|root| PathBuf::from(root).join(below_root));
    let mut left = begun.collect::<Vec<_>>();
    while let Some(folder) = left.pop() {
        // The number of a group is that of its folder.
        let Ok(facts) = fs::symlink_metadata(&folder) else {
            continue;
        };
        if !facts.is_dir() || found.len() >= MAX_GROUPS {
            continue;
        }
        found.insert(facts.ino());
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        left.extend(folders.map(|entry| entry.path()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::getuid;
    use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};

    fn v6(address: io::Result<std::net::SocketAddr>) -> SocketAddrV6 {
        let std::net::SocketAddr::V6(address) = address.unwrap() else {
            panic!("an IPv6 socket");
        };
        address
    }

    fn flow(protocol: Protocol, local: SocketAddrV6, remote: SocketAddrV6) -> Flow {
        Flow {
            protocol,
            local,
            remote,
            device: 0,
        }
    }

    #[test]
    fn the_socket_that_gets_a_packet_is_found() {
        let mut sockets = Sockets::open().unwrap();
        let mut owner = |protocol, local, remote| {
            let found = sockets.owner(&flow(protocol, local, remote)).unwrap();
            found.map(|owner| owner.user)
        };
        let us = Some(getuid().as_raw());
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, client) = (v6(listener.local_addr()), v6(stream.local_addr()));
        let stranger = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 9, 0, 0);

        assert_eq!(owner(Protocol::Tcp, client, server), us);
        assert_eq!(owner(Protocol::Tcp, server, client), us);
        // Who listens gets what begins.
        assert_eq!(owner(Protocol::Tcp, server, stranger), us);
        assert_eq!(owner(Protocol::Tcp, stranger, server), None);
    }

    #[test]
    fn a_socket_of_udp_is_found_bound_or_connected() {
        let mut sockets = Sockets::open().unwrap();
        let server = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = v6(server.local_addr()).port();
        let at = SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0);
        let client = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        client.connect(at).unwrap();
        let from = v6(client.local_addr());
        let mut found = |local, remote| {
            let found = sockets.owner(&flow(Protocol::Udp, local, remote));
            found.unwrap().map(|owner| owner.user)
        };

        assert_eq!(found(at, from), Some(getuid().as_raw()));
        assert_eq!(found(from, at), Some(getuid().as_raw()));
    }

    #[test]
    fn answers_are_read_and_rubbish_is_not() {
        let mut message = vec![0; HEADER + ANSWER];
        message[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        message[8..12].copy_from_slice(&7_u32.to_ne_bytes());
        message[HEADER + UID_AT..][..4].copy_from_slice(&1001_u32.to_ne_bytes());
        let owner = |cgroup| Read::Owner(SocketOwner { user: 1001, cgroup });
        assert_eq!(read(&message, 7).unwrap(), owner(None));
        assert_eq!(read(&message, 8).unwrap(), Read::Other);
        for (kind, value) in [(3_u16, vec![1]), (CGROUP_ID, 42_u64.to_ne_bytes().to_vec())] {
            let length = u16::try_from(4 + value.len()).unwrap();
            message.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            message.extend(&value);
            message.resize(message.len().next_multiple_of(ALIGNMENT), 0);
        }

        assert_eq!(read(&message, 7).unwrap(), owner(Some(42)));
        assert!(read(&message[..HEADER + UID_AT], 7).is_err());
        let mut refused = vec![0; HEADER + 4];
        refused[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        refused[HEADER..].copy_from_slice(&(-2_i32).to_ne_bytes());
        assert_eq!(read(&refused, 0).unwrap(), Read::Nobody);
        refused[HEADER..].copy_from_slice(&(-1_i32).to_ne_bytes());
        let error = read(&refused, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        for length in 0..HEADER {
            assert!(read(&refused[..length], 0).is_err());
        }
    }
}
