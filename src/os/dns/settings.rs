//! The text of a resolv.conf, read as the C library reads it (resolv.conf(5)); pure.

use std::net::{IpAddr, Ipv6Addr};

/// Starts the first line of a file of ours, by which we know it after a crash.
const MARKER: &str = "# Written by agentnet:";

/// One `nameserver` line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nameserver {
    pub address: IpAddr,
    /// The interface of a link-local address, by name or number; None without one.
    pub scope: Option<String>,
}

/// What of a resolv.conf matters to us.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    pub nameservers: Vec<Nameserver>,
    pub search: Vec<String>,
    /// Lines that hold with any nameserver (`options`, `sortlist`), as they are.
    pub kept: Vec<String>,
}

impl Settings {
    /// Reads a file; what the C library would pass over is passed over.
    pub fn parse(text: &[u8]) -> Self {
        let mut settings = Self::default();
        for line in String::from_utf8_lossy(text).lines() {
            let Some((keyword, rest)) = line.split_once([' ', '\t']) else {
                continue;
            };
            match keyword {
                "nameserver" => settings.nameservers.extend(nameserver(rest)),
                // The last of both wins.
                "domain" | "search" => {
                    settings.search = rest.split_whitespace().map(str::to_owned).collect();
                }
                "options" | "sortlist" if !rest.trim().is_empty() => {
                    settings.kept.push(line.trim_end().to_owned());
                }
                _ => {}
            }
        }
        settings
    }

    /// Returns the file that puts `nameservers` alone and `search` first, and keeps the rest.
    ///
    /// No foreign nameserver stands behind ours: the C library would ask it for our names whenever
    /// ours is slow.
    pub fn render(&self, nameservers: &[Ipv6Addr], search: &[String], backup: &str) -> String {
        let mut lines = vec![
            format!("{MARKER} it answers agents' names and forwards all others."),
            format!("# The original is in {backup} until the daemon stops."),
        ];
        lines.extend(nameservers.iter().map(|ip| format!("nameserver {ip}")));
        let mut domains = search.to_vec();
        for domain in &self.search {
            if !domains.iter().any(|d| same_domain(d, domain)) {
                domains.push(domain.clone());
            }
        }
        if !domains.is_empty() {
            lines.push(format!("search {}", domains.join(" ")));
        }
        lines.extend(self.kept.iter().cloned());
        lines.push(String::new());
        lines.join("\n")
    }
}

/// Tells whether a file was written by [`Settings::render`], whoever added to it since.
pub(super) fn is_ours(text: &[u8]) -> bool {
    text.split(|b| *b == b'\n')
        .any(|line| line.starts_with(MARKER.as_bytes()))
}

fn nameserver(rest: &str) -> Option<Nameserver> {
    let end = |c: char| c.is_whitespace() || c == ';' || c == '#';
    let text = rest.trim_start().split(end).next()?;
    let (address, scope) = match text.split_once('%') {
        Some((address, scope)) => (address, Some(scope.to_owned())),
        None => (text, None),
    };
    let address = address.parse().ok()?;
    Some(Nameserver { address, scope })
}

fn same_domain(one: &str, other: &str) -> bool {
    let bare = |d: &str| d.trim_end_matches('.').to_ascii_lowercase();
    bare(one) == bare(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OURS: [Ipv6Addr; 1] = [Ipv6Addr::new(0xfd11, 0x2233, 0x4455, 1, 0, 0, 0, 0xa)];

    fn text(nameserver: &Nameserver) -> String {
        match &nameserver.scope {
            Some(scope) => format!("{}%{scope}", nameserver.address),
            None => nameserver.address.to_string(),
        }
    }

    #[test]
    fn a_file_is_read_as_the_c_library_reads_it() {
        let file = b"; comment\n# nameserver 9.9.9.9\nnameserver 192.0.2.1 # first\n\
            nameserver\tfe80::1%eth0\nnameserver  2001:db8::53;x\n nameserver 8.8.8.8\n\
            nameserver nonsense\nnameserver\nnameservers 8.8.4.4\n\
            domain old.example\nsearch corp.example  lab.example\n\
            options edns0 trust-ad \noptions timeout:1\nsortlist 10.0.0.0\nlookup file bind\n\xff\xfe\n";

        let settings = Settings::parse(file);

        let servers = settings.nameservers.iter().map(text).collect::<Vec<_>>();
        assert_eq!(servers, ["192.0.2.1", "fe80::1%eth0", "2001:db8::53"]);
        assert_eq!(settings.search, ["corp.example", "lab.example"]);
        assert_eq!(
            settings.kept,
            [
                "options edns0 trust-ad",
                "options timeout:1",
                "sortlist 10.0.0.0"
            ]
        );
    }

    #[test]
    fn ours_stands_alone_and_our_domain_first() {
        let original = Settings::parse(
            b"nameserver 192.0.2.1\nsearch corp.example ACME.agent.\noptions edns0\n",
        );

        let file = original.render(&OURS, &["acme.agent".to_owned()], "/state/x");

        assert!(is_ours(file.as_bytes()));
        let settings = Settings::parse(file.as_bytes());
        assert_eq!(settings.nameservers.len(), 1);
        assert_eq!(settings.nameservers[0].address, OURS[0]);
        assert_eq!(settings.search, ["acme.agent", "corp.example"]);
        assert_eq!(settings.kept, ["options edns0"]);
    }

    proptest! {
        #[test]
        fn any_bytes_give_settings(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let settings = Settings::parse(&bytes);
            let file = settings.render(&OURS, &[], "x");

            prop_assert!(is_ours(file.as_bytes()));
        }

        /// What is rendered reads back: nothing of a foreign file can smuggle a line into ours.
        #[test]
        fn foreign_settings_survive_ours(
            lines in prop::collection::vec(
                "(nameserver|search|domain|options|sortlist|#|)[ \t]\\PC{0,30}", 0..8),
        ) {
            let original = Settings::parse(lines.join("\n").as_bytes());
            let ours = original.render(&OURS, &["acme.agent".to_owned()], "x");

            let again = Settings::parse(ours.as_bytes());

            prop_assert_eq!(&again.kept, &original.kept);
            prop_assert_eq!(again.nameservers.len(), 1);
            prop_assert_eq!(&again.search[0], "acme.agent");
            for domain in &original.search {
                prop_assert!(again.search.iter().any(|d| same_domain(d, domain)));
            }
        }

        #[test]
        fn every_nameserver_is_read(address: IpAddr, scope in "(%[a-z][a-z0-9]{0,9})?") {
            let line = format!("nameserver {address}{scope}\n");
            let settings = Settings::parse(line.as_bytes());

            prop_assert_eq!(settings.nameservers.len(), 1);
            prop_assert_eq!(text(&settings.nameservers[0]), format!("{address}{scope}"));
        }
    }
}
