//! Agents that are bound to a user or a control group, on the host's own network: each has a routing table and
//! rules of its own, so that others neither send from its address nor get past the overlay to it.
//!
//! As long as one is bound, the kernel finds the addresses of all agents by these tables and not by its own
//! table of local addresses, which comes before all rules: packets between agents of one host then go by their
//! devices, where consents hold.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use futures_util::TryStreamExt;
use nix::{errno::Errno, unistd::geteuid};
use rtnetlink::{
    IpVersion, RouteMessageBuilder,
    packet_route::{
        AddressFamily, IpProtocol,
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange, RuleUidRange},
    },
};

use super::{
    FIRST_METRIC, MAX_METRICS, OURS, RouteError, Routing, destination, errno, failed, metric, oif,
};
use crate::id::OverlayIp;
use crate::wire::binding::Binding;

/// Number of the first of our rules. The kernel's table of local addresses is 0; VPNs begin at some 5,200.
const FIRST_RULE: u32 = 4900;

/// Their order: names are answered for everybody, then who may, then who may not, then what comes in.
const NAMES: u32 = FIRST_RULE;
const TO: u32 = FIRST_RULE + 1;
const FROM: u32 = FIRST_RULE + 2;
const FORBIDDEN: u32 = FIRST_RULE + 3;
const IN: u32 = FIRST_RULE + 4;

/// Numbers of our tables: "ag", and the device's index.
const TABLES: u32 = 0x6167_0000;
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;
const LOCAL: u32 = 255; // RT_TABLE_LOCAL of rtnetlink(7)

/// Where programs' own packets come from, as rules see it.
const LOOPBACK: &str = "lo";

/// Port of a name server (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

/// An agent on the host's own network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resident {
    pub device: String,
    pub index: u32,
    pub address: OverlayIp,
    /// Whose programs alone may use it; None is everybody's.
    pub binding: Option<Binding>,
}

impl Resident {
    fn table(&self) -> u32 {
        match self.binding {
            Some(_) => TABLES.wrapping_add(self.index),
            None => MAIN,
        }
    }

    fn rules(&self) -> Vec<Rule> {
        let table = self.table();
        let rule = |priority| Rule {
            priority,
            from: None,
            to: None,
            user: None,
            protocol: None,
            device: LOOPBACK.to_owned(),
            table: Some(table),
        };
        let address = (self.address.ip(), 128);
        let prefix = (self.address.network().first(), 64);
        let mut rules = vec![Rule {
            device: self.device.clone(),
            ..rule(IN)
        }];
        let Some(binding) = &self.binding else {
            return rules;
        };
        rules.extend([IpProtocol::Udp, IpProtocol::Tcp].map(|protocol| Rule {
            to: Some(address),
            protocol: Some(i32::from(protocol)),
            ..rule(NAMES)
        }));
        let from = |user| Rule {
            from: Some(address),
            user,
            ..rule(FROM)
        };
        match binding {
            Binding::Cgroup(_) => rules.push(from(None)),
            Binding::User(user) => {
                rules.push(Rule {
                    to: Some(prefix),
                    user: Some(*user),
                    ..rule(TO)
                });
                // The kernel's own answers are root's; the daemon answers names.
                let users = BTreeSet::from([*user, 0, geteuid().as_raw()]);
                rules.extend(users.into_iter().map(|user| from(Some(user))));
                rules.push(Rule {
                    from: Some(address),
                    table: None,
                    ..rule(FORBIDDEN)
                });
            }
        }
        rules
    }
}

/// A rule of ours, by all that distinguishes it from others.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Rule {
    priority: u32,
    from: Option<(Ipv6Addr, u8)>,
    to: Option<(Ipv6Addr, u8)>,
    /// Only of packets of this user's sockets.
    user: Option<u32>,
    /// Only of this protocol, and to name servers.
    protocol: Option<i32>,
    /// By which packets come.
    device: String,
    /// None where packets go nowhere.
    table: Option<u32>,
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        let header = &mut message.header;
        header.family = AddressFamily::Inet6;
        header.action = match self.table {
            Some(_) => RuleAction::ToTable,
            None => RuleAction::Prohibit,
        };
        let source = self.from.map(|(address, length)| {
            header.src_len = length;
            RuleAttribute::Source(address.into())
        });
        let to = self.to.map(|(address, length)| {
            header.dst_len = length;
            RuleAttribute::Destination(address.into())
        });
        let range = |port| RulePortRange {
            start: port,
            end: port,
        };
        let user = |user| RuleUidRange {
            start: user,
            end: user,
        };
        let names = self.protocol.map(|protocol| {
            [
                RuleAttribute::IpProtocol(protocol.into()),
                RuleAttribute::DestinationPortRange(range(DNS_PORT)),
            ]
        });
        let attributes = &mut message.attributes;
        attributes.extend([
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Iifname(self.device.clone()),
            RuleAttribute::Protocol(OURS),
        ]);
        attributes.extend(source.into_iter().chain(to));
        attributes.extend(
            self.user
                .map(|number| RuleAttribute::UidRange(user(number))),
        );
        attributes.extend(names.into_iter().flatten());
        attributes.extend(self.table.map(RuleAttribute::Table));
        message
    }

    /// Reads a rule of ours; None where it is another's.
    fn of(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let mut rule = Self {
            priority: 0,
            from: None,
            to: None,
            user: None,
            protocol: None,
            device: String::new(),
            table: (header.action == RuleAction::ToTable).then_some(header.table.into()),
        };
        let mut is_ours = false;
        for attribute in &message.attributes {
            if let RuleAttribute::Priority(priority) = attribute {
                rule.priority = *priority;
            } else if let RuleAttribute::Iifname(device) = attribute {
                rule.device.clone_from(device);
            } else if let RuleAttribute::Protocol(protocol) = attribute {
                is_ours = *protocol == OURS;
            } else if let RuleAttribute::Source(IpAddr::V6(from)) = attribute {
                rule.from = Some((*from, header.src_len));
            } else if let RuleAttribute::Destination(IpAddr::V6(to)) = attribute {
                rule.to = Some((*to, header.dst_len));
            } else if let RuleAttribute::UidRange(users) = attribute {
                rule.user = Some(users.start);
            } else if let RuleAttribute::IpProtocol(protocol) = attribute {
                rule.protocol = Some(i32::from(*protocol));
            } else if let RuleAttribute::Table(table) = attribute {
                rule.table = rule.table.map(|_| *table);
            }
        }
        is_ours.then_some(rule)
    }
}

impl Routing {
    /// Brings rules and tables in line with the agents that are on the host's network; whatever else there is
    /// of ours, as what a killed daemon left, is removed.
    pub async fn settle(&self, residents: &[Resident]) -> Result<(), RouteError> {
        let is_bound = residents.iter().any(|resident| resident.binding.is_some());
        let wanted = residents.iter().filter(|_| is_bound);
        let wanted = wanted.flat_map(Resident::rules).collect::<BTreeSet<_>>();
        let mut there = BTreeSet::new();
        let mut stale = Vec::new();
        for message in self.rules().await? {
            match Rule::of(&message) {
                Some(rule) if wanted.contains(&rule) => drop(there.insert(rule)),
                Some(_) => stale.push(message),
                None => {}
            }
        }
        if wanted.is_empty() && stale.is_empty() {
            return Ok(());
        }
        let routes = self.routes_of(residents).await?;
        for resident in residents {
            self.add_local(resident, if is_bound { resident.table() } else { LOCAL })
                .await?;
            self.add_prefix(resident, &routes).await?;
        }
        for rule in wanted.difference(&there) {
            let mut request = self.handle.rule().add();
            *request.message_mut() = rule.message();
            let done = request.execute().await;
            done.map_err(|e| failed("add a routing rule", e))?;
        }
        for route in routes {
            if is_out_of_place(&route, residents, is_bound) {
                self.delete_route(route).await?;
            }
        }
        for message in stale {
            match self.handle.rule().del(message).execute().await {
                Err(error) if errno(&error) == Some(Errno::ENOENT) => {}
                done => done.map_err(|e| failed("remove a routing rule", e))?,
            }
        }
        Ok(())
    }

    async fn rules(&self) -> Result<Vec<RuleMessage>, RouteError> {
        let all = self.handle.rule().get(IpVersion::V6).execute();
        let all = all.try_collect::<Vec<_>>().await;
        all.map_err(|e| failed("list routing rules", e))
    }

    /// Returns the routes through devices of agents to them and to their networks.
    async fn routes_of(&self, residents: &[Resident]) -> Result<Vec<RouteMessage>, RouteError> {
        let all = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let all = self.handle.route().get(all).execute();
        let all = all.try_collect::<Vec<_>>().await;
        let mut all = all.map_err(|e| failed("list routes", e))?;
        all.retain(|route| resident(route, residents).is_some());
        Ok(all)
    }

    async fn add_local(&self, resident: &Resident, table: u32) -> Result<(), RouteError> {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(resident.address.ip(), 128)
            .output_interface(resident.index)
            .kind(RouteType::Local)
            .table_id(table)
            .protocol(OURS)
            .build();
        self.add_unless_there(route).await
    }

    /// Has those that are bound lead to their network by their own table; a control group's also by the main
    /// one, where no other agent leads there, since no rule tells its programs from others.
    async fn add_prefix(
        &self,
        resident: &Resident,
        routes: &[RouteMessage],
    ) -> Result<(), RouteError> {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(resident.address.network().first(), 64)
            .output_interface(resident.index)
            .pref_source(resident.address.ip())
            .protocol(OURS);
        let own = |route: &&RouteMessage| {
            oif(route) == Some(resident.index) && table(route) == MAIN && !is_local(route)
        };
        match resident.binding {
            None => Ok(()),
            Some(Binding::User(_)) => self.add_unless_there(in_table(route, resident)).await,
            Some(Binding::Cgroup(_)) => {
                self.add_unless_there(in_table(route.clone(), resident))
                    .await?;
                let late = |route: &RouteMessage| metric(route).is_some_and(is_last);
                if routes.iter().filter(own).any(late) {
                    return Ok(());
                }
                let last = FIRST_METRIC + MAX_METRICS + resident.index % MAX_METRICS;
                self.add_unless_there(route.priority(last).build()).await
            }
        }
    }

    async fn add_unless_there(&self, route: RouteMessage) -> Result<(), RouteError> {
        match self.handle.route().add(route).execute().await {
            Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
            done => done.map_err(|e| failed("add a route of an agent", e)),
        }
    }
}

fn in_table(route: RouteMessageBuilder<Ipv6Addr>, resident: &Resident) -> RouteMessage {
    route
        .table_id(resident.table())
        .priority(FIRST_METRIC)
        .build()
}

/// Tells whether a route is of those that come after all others.
const fn is_last(metric: u32) -> bool {
    metric >= FIRST_METRIC + MAX_METRICS
}

fn is_local(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Local
}

/// Finds the agent that a route through its device leads to, or whose network.
fn resident<'a>(route: &RouteMessage, residents: &'a [Resident]) -> Option<&'a Resident> {
    let (index, to) = (oif(route)?, destination(route)?);
    let of = residents.iter().find(|resident| resident.index == index)?;
    let leads = match route.header.destination_prefix_length {
        128 => is_local(route) && to == of.address.ip(),
        64 => to == of.address.network().first(),
        _ => false,
    };
    leads.then_some(of)
}

/// Tells whether a route that was there is to go, now that those in its place are.
fn is_out_of_place(route: &RouteMessage, residents: &[Resident], is_bound: bool) -> bool {
    let Some(resident) = resident(route, residents) else {
        return false;
    };
    if is_local(route) {
        let place = if is_bound { resident.table() } else { LOCAL };
        return table(route) != place;
    }
    let is_last = metric(route).is_some_and(is_last);
    match resident.binding {
        None => table(route) != MAIN,
        Some(Binding::User(_)) => table(route) != resident.table(),
        Some(Binding::Cgroup(_)) => table(route) != resident.table() && !is_last,
    }
}

fn table(route: &RouteMessage) -> u32 {
    let long = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Table(table) = attribute {
            Some(*table)
        } else {
            None
        }
    });
    long.unwrap_or_else(|| route.header.table.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident(binding: Option<Binding>) -> Resident {
        Resident {
            device: "agn3".to_owned(),
            index: 7,
            address: "fd11:0:0:1::5".parse().unwrap(),
            binding,
        }
    }

    fn bindings() -> [Option<Binding>; 3] {
        let group = "/a.slice".parse().unwrap();
        [
            None,
            Some(Binding::User(1001)),
            Some(Binding::Cgroup(group)),
        ]
    }

    /// The kernel's answer has more attributes, and a short table number where it fits.
    #[test]
    fn rules_are_known_again() {
        for binding in bindings() {
            for rule in resident(binding).rules() {
                let mut message = rule.message();
                let attributes = &mut message.attributes;
                attributes.push(RuleAttribute::SuppressPrefixLen(u32::MAX));
                assert_eq!(Rule::of(&message).as_ref(), Some(&rule));
                let is_ours =
                    |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Protocol(_));
                message.attributes.retain(|attribute| !is_ours(attribute));
                assert_eq!(Rule::of(&message), None);
            }
        }
    }

    /// Only the user, root for the kernel, and the daemon send from a user's agent; a group's packets are
    /// told apart by the data plane.
    #[test]
    fn who_may_send_comes_before_who_may_not() {
        let mut rules = resident(bindings()[1].clone()).rules();
        rules.sort();
        let from = rules.iter().filter(|rule| rule.from.is_some());
        let from = from
            .map(|rule| (rule.user, rule.table.is_some()))
            .collect::<Vec<_>>();
        assert_eq!(from.first(), Some(&(Some(0), true)));
        assert!(from.contains(&(Some(1001), true)));
        assert_eq!(from.last(), Some(&(None, false)));

        let group = resident(bindings()[2].clone()).rules();
        assert!(
            group
                .iter()
                .all(|rule| rule.table.is_some() && rule.user.is_none())
        );
        assert_eq!(resident(None).rules().len(), 1);
    }
}
