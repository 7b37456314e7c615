//! Whether the socket that a packet comes from or goes to belongs to whom the agent is bound to.
//!
//! It is asked of the kernel's list of sockets. What users send the host's rules hold as well (os::route); of
//! control groups they know nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, SocketAddrV6},
    time::{Duration, Instant},
};

use crate::dataplane::tables::Bound;
use crate::dataplane::tap::Way;
use crate::os::sockets::{Flow, Protocol, SocketOwner, Sockets, cgroups};
use crate::wire::binding::{Binding, CgroupPath};
use crate::wire::ip::{Echo, Ipv6View, Ports, Transport};

/// How long an answer holds: of yes, until another program may have the port; of no, until the right one may.
const YES: Duration = Duration::from_secs(1);
const NO: Duration = Duration::from_millis(100);

/// Flows that are remembered, and groups.
const MAX_KNOWN: usize = 4096;

/// What is known of sockets, for a while.
#[derive(Debug, Default)]
pub(super) struct Owners {
    sockets: Option<Sockets>,
    /// Until when it holds, and whether the flow may be.
    known: BTreeMap<Flow, (Instant, bool)>,
    groups: BTreeMap<CgroupPath, Groups>,
}

/// Which control groups are one or below it; none ever moves, and no number comes back.
#[derive(Debug, Default)]
struct Groups {
    within: BTreeSet<u64>,
    outside: BTreeSet<u64>,
}

/// Whom a packet has to do with on this host.
enum End {
    /// Nobody but the kernel, or a flow that was asked about when it began.
    Kernel,
    Socket(Protocol, Ports),
    /// A socket that the kernel does not list.
    Unlisted,
}

impl Owners {
    /// Tells whether a packet of an agent that is bound may pass.
    pub(super) fn may(&mut self, bound: &Bound, packet: &[u8], way: Way, now: Instant) -> bool {
        Ipv6View::parse(packet).is_ok_and(|view| {
            let ends = (view.source(), view.destination());
            self.judge(bound, view.transport(), ends, way, now)
        })
    }

    fn judge(
        &mut self,
        bound: &Bound,
        transport: Transport,
        (source, destination): (Ipv6Addr, Ipv6Addr),
        way: Way,
        now: Instant,
    ) -> bool {
        // What users send the host's rules hold, which know of sockets that are closed already.
        let is_held = matches!(bound.binding, Binding::User(_));
        let (protocol, ports) = match end(transport) {
            End::Kernel => return true,
            End::Unlisted => return is_held || way == Way::In,
            End::Socket(protocol, ports) => (protocol, ports),
        };
        let at = |address: Ipv6Addr, port| SocketAddrV6::new(address, port, 0, 0);
        let source = at(source, ports.source);
        let destination = at(destination, ports.destination);
        let (local, remote) = match way {
            Way::In => (destination, source),
            Way::Out => (source, destination),
        };
        let flow = Flow {
            protocol,
            local,
            remote,
            device: bound.device,
        };
        if let Some((until, may)) = self.known.get(&flow)
            && now < *until
        {
            return *may;
        }
        let may = match self.owner(&flow) {
            // The kernel says so itself to who sent it.
            Some(None) => is_held || way == Way::In,
            Some(Some(owner)) => self.is_of(&owner, &bound.binding),
            None => false,
        };
        if self.known.len() >= MAX_KNOWN {
            self.known.retain(|_, (until, _)| now < *until);
        }
        if self.known.len() < MAX_KNOWN {
            let until = now + if may { YES } else { NO };
            self.known.insert(flow, (until, may));
        }
        may
    }

    /// Returns who owns the socket of a flow, None inside when nobody does; None when that is not to be known.
    fn owner(&mut self, flow: &Flow) -> Option<Option<SocketOwner>> {
        let open = self.sockets.take().map_or_else(Sockets::open, Ok);
        let asked = open.and_then(|mut sockets| Ok((sockets.owner(flow)?, sockets)));
        match asked {
            Ok((owner, sockets)) => {
                self.sockets = Some(sockets);
                Some(owner)
            }
            Err(error) => {
                tracing::warn!(%error, "The kernel does not say whose a socket is");
                None
            }
        }
    }

    fn is_of(&mut self, owner: &SocketOwner, binding: &Binding) -> bool {
        match binding {
            // Root's too: systemd opens sockets for others.
            Binding::User(user) => owner.user == *user || owner.user == 0,
            Binding::Cgroup(path) => owner.cgroup.is_some_and(|id| self.has(path, id)),
        }
    }

    /// Tells whether a control group is the one at `path` or below it.
    fn has(&mut self, path: &CgroupPath, id: u64) -> bool {
        let groups = self.groups.entry(path.clone()).or_default();
        if !groups.within.contains(&id) && !groups.outside.contains(&id) {
            groups.within = cgroups(path.below_root());
            if groups.outside.len() >= MAX_KNOWN {
                groups.outside.clear();
            }
            if !groups.within.contains(&id) {
                groups.outside.insert(id);
            }
        }
        groups.within.contains(&id)
    }

    /// Forgets everything, since agents may be bound otherwise from now on.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.groups.clear();
    }
}

fn end(transport: Transport) -> End {
    match transport {
        Transport::Tcp(tcp) if tcp.syn && !tcp.ack => End::Socket(Protocol::Tcp, tcp.ports),
        Transport::Udp(ports) => End::Socket(Protocol::Udp, ports),
        Transport::Icmp6Echo {
            kind: Echo::Request,
            ..
        }
        | Transport::Other(_) => End::Unlisted,
        Transport::Tcp(_)
        | Transport::Icmp6Echo {
            kind: Echo::Reply, ..
        }
        | Transport::Icmp6Error(_)
        | Transport::Icmp6Other(_)
        | Transport::LaterFragment
        | Transport::NoNext => End::Kernel,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::clock;
    use nix::unistd::getuid;
    use std::{fs, net::UdpSocket, os::unix::fs::MetadataExt};

    const HERE: (Ipv6Addr, Ipv6Addr) = (Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);

    const fn udp(source: u16, destination: u16) -> Transport {
        Transport::Udp(Ports {
            source,
            destination,
        })
    }

    fn bound(binding: Binding) -> Bound {
        Bound { binding, device: 0 }
    }

    /// A socket of ours at a port of the loopback address.
    fn socket() -> (UdpSocket, u16) {
        let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    #[test]
    fn what_comes_to_another_users_socket_is_refused() {
        let ((_socket, port), now) = (socket(), clock::now());
        let us = getuid().as_raw();
        let may = |user| {
            let bound = bound(Binding::User(user));
            Owners::default().judge(&bound, udp(9, port), HERE, Way::In, now)
        };

        assert!(may(us));
        assert_eq!(may(us + 1), us == 0, "root's sockets are everybody's");
        // Nobody's: the kernel answers.
        let other = bound(Binding::User(us + 1));
        assert!(Owners::default().judge(&other, udp(9, 9), HERE, Way::In, now));
    }

    #[test]
    fn answers_hold_for_a_while() {
        let ((taken, port), now) = (socket(), clock::now());
        let path = "/no.such/group".parse().unwrap();
        let bound = bound(Binding::Cgroup(path));
        let mut owners = Owners::default();
        let mut may_come = |now| owners.judge(&bound, udp(9, port), HERE, Way::In, now);

        assert!(!may_come(now), "it is of another group");
        drop(taken);
        assert!(!may_come(now));
        assert!(may_come(now + NO), "nobody is there any more");
        let (_socket, again) = (
            UdpSocket::bind((Ipv6Addr::LOCALHOST, port)).unwrap(),
            now + NO,
        );
        assert!(may_come(again));
        assert!(!may_come(again + YES));
    }

    /// Of the group this test is in, and of one above it, where the host has such.
    #[test]
    fn sockets_of_a_control_group_are_told_from_others() {
        let ((_socket, port), now) = (socket(), clock::now());
        let all = fs::read_to_string("/proc/self/cgroup").unwrap();
        let ours = all.lines().find_map(|line| line.strip_prefix("0::"));
        let Some(Ok(path)) = ours.map(str::parse::<CgroupPath>) else {
            // At the root, which nobody is bound to.
            return;
        };
        if cgroups(path.below_root()).is_empty() {
            // Not to be seen from here.
            return;
        }
        let facts = fs::metadata(format!("/sys/fs/cgroup{path}")).unwrap();
        let may = |path: &str| {
            let bound = bound(Binding::Cgroup(path.parse().unwrap()));
            Owners::default().judge(&bound, udp(port, 9), HERE, Way::Out, now)
        };

        assert!(cgroups(path.below_root()).contains(&facts.ino()));
        assert!(may(&path.to_string()));
        assert!(!may("/no.such/group"));
    }

    #[test]
    fn what_has_no_listed_socket_is_sent_by_users_alone() {
        let now = clock::now();
        let ping = Transport::Icmp6Echo {
            kind: Echo::Request,
            id: 1,
        };
        let may = |binding, way| Owners::default().judge(&bound(binding), ping, HERE, way, now);
        let group = || Binding::Cgroup("/a.slice".parse().unwrap());

        assert!(may(Binding::User(7), Way::Out));
        assert!(!may(group(), Way::Out));
        assert!(may(group(), Way::In), "the kernel answers it");
    }
}
