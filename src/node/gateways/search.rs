//! Where an agent looks for a gateway that the registry did not name: what is found there is asked by
//! GW-DISCOVER, so that none of it has to be believed.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use tracing::debug;

use crate::config::SearchSettings;
use crate::id::{Did, OverlayIp};
use crate::node::gateways::ask::{Offered, ask};
use crate::node::gateways::{is_underlay, look_up, srv};
use crate::os::files::read_text;

/// Places asked in one round, wherever they are named.
const MAX_PLACES: usize = 16;

/// How often it is looked whether a hint changed, by an agent that has no gateway.
const HINT: Duration = Duration::from_secs(1);

/// What a hint may name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Hints {
    /// `host:port`
    hosts: Vec<String>,
}

impl Hints {
    /// Reads lines of `host:port`; all else is left out, since a hint is advisory.
    fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim);
        let is_host = |line: &&str| {
            let port = line
                .rsplit_once(':')
                .map(|(host, port)| (host, port.parse::<u16>()));
            let is_named = port.is_some_and(|(host, port)| !host.is_empty() && port.is_ok());
            is_named && line.is_ascii() && !line.contains(char::is_whitespace)
        };
        let hosts = lines.filter(|line| !line.starts_with('#')).filter(is_host);
        let hosts = hosts.take(MAX_PLACES).map(str::to_owned).collect();
        Self { hosts }
    }
}

/// Everywhere the settings name.
#[derive(Debug)]
pub(super) struct Search {
    settings: SearchSettings,
}

impl Search {
    pub(super) const fn new(settings: SearchSettings) -> Self {
        Self { settings }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.settings.is_empty()
    }

    /// Waits until the hints are others than now; for ever where none are read.
    ///
    /// # Cancel safety
    ///
    /// Changes nothing.
    pub(super) async fn hinted(&self) {
        let Some(file) = &self.settings.hints else {
            return std::future::pending().await;
        };
        let before = modified(file);
        while modified(file) == before {
            tokio::time::sleep(HINT).await;
        }
    }

    /// Asks all there is to ask on behalf of one agent.
    pub(super) async fn ask(&self, agent: Did, local: OverlayIp) -> Vec<Offered> {
        let mut hosts = self.settings.discover.clone();
        hosts.extend(self.hints().hosts);
        if let Some(domain) = &self.settings.dns {
            hosts.extend(srv::hosts(domain).await);
        }
        let mut places = BTreeSet::new();
        for place in look_up(hosts).await {
            if places.len() < MAX_PLACES && is_askable(place) && is_underlay(place, local) {
                places.insert(place);
            }
        }
        ask(agent, &places, self.settings.multicast).await
    }

    fn hints(&self) -> Hints {
        let Some(file) = &self.settings.hints else {
            return Hints::default();
        };
        match read_text(file) {
            Ok(text) => Hints::parse(&text),
            // There is none before the first lease.
            Err(error) => {
                debug!(%error, "No hint of a gateway");
                Hints::default()
            }
        }
    }
}

/// Tells whether one gateway, or one of several, may be at an address.
fn is_askable(place: SocketAddr) -> bool {
    !place.ip().is_multicast() && !place.ip().is_unspecified() && place.port() != 0
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file)
        .and_then(|known| known.modified())
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// a hint names places to ask, and nothing else of it counts.
    #[test]
    fn a_hint_names_hosts_and_the_rest_is_left_out() {
        let text = "# by dhcpcd\n192.0.2.1:16201\n gw.example.org:16201 \n[2001:db8::1]:16201\n\
                    no-port\n:16201\nhost:99999\nrm -rf /:1\n\u{fc}ber:1\n\n";

        let hints = Hints::parse(text);

        let hosts = [
            "192.0.2.1:16201",
            "gw.example.org:16201",
            "[2001:db8::1]:16201",
        ];
        assert_eq!(hints.hosts, hosts);
    }

    #[test]
    fn hints_are_bounded() {
        let text = "192.0.2.1:1\n".repeat(10_000);

        assert_eq!(Hints::parse(&text).hosts.len(), MAX_PLACES);
    }

    #[test]
    fn no_group_is_asked_as_if_it_were_a_gateway() {
        let at = |text: &str| text.parse().unwrap();
        assert!(is_askable(at("192.0.2.1:1")) && is_askable(at("[2001:db8::1]:1")));
        for place in ["224.0.0.1:1", "[ff02::1]:1", "0.0.0.0:1", "192.0.2.1:0"] {
            assert!(!is_askable(at(place)), "{place}");
        }
    }
}
