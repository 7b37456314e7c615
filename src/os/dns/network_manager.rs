//! NetworkManager that writes `/etc/resolv.conf` itself: a global DNS section among its settings
//! of this boot has it name our resolver alone, whatever its connections bring.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zbus::{OwnedObjectPath, OwnedVariant};

use crate::os::dns::Applied;
use crate::os::dns::bus::{Bus, BusError, Object};
use crate::os::dns::detect::NetworkManager;
use crate::os::dns::error::DnsError;
use crate::os::dns::original::read_bounded;

/// Its name on the system bus.
pub(super) const SERVICE: &str = "org.freedesktop.NetworkManager";

/// Settings that end with this boot (NetworkManager.conf(5)).
const FOLDER: &str = "/run/NetworkManager/conf.d";

const FILE: &str = "/run/NetworkManager/conf.d/agentnet.conf";

/// Reads NetworkManager.conf anew, and nothing else (`Reload` of org.freedesktop.NetworkManager).
const RELOAD_CONF: u32 = 0x1;

const PORT: u16 = 53;

const MANAGER: Object<'static> = Object {
    service: SERVICE,
    path: "/org/freedesktop/NetworkManager",
    interface: SERVICE,
};

const DNS: Object<'static> = Object {
    service: SERVICE,
    path: "/org/freedesktop/NetworkManager/DnsManager",
    interface: "org.freedesktop.NetworkManager.DnsManager",
};

const ACTIVE: &str = "org.freedesktop.NetworkManager.Connection.Active";
const IP4: &str = "org.freedesktop.NetworkManager.IP4Config";
const IP6: &str = "org.freedesktop.NetworkManager.IP6Config";

/// Returns how a running one deals with DNS.
pub(super) async fn facts(bus: &Bus) -> Result<NetworkManager, BusError> {
    Ok(NetworkManager {
        mode: bus.property(DNS, "Mode").await?,
        manages: bus.property(DNS, "RcManager").await?,
    })
}

/// Returns what its connections bring, that of the default route first, ours never among them.
pub(super) async fn look(bus: &Bus, own: &[IpAddr]) -> Result<Applied, BusError> {
    let mut found = Applied::default();
    let primary = bus
        .property::<OwnedObjectPath>(MANAGER, "PrimaryConnection")
        .await?;
    let mut active = bus
        .property::<Vec<OwnedObjectPath>>(MANAGER, "ActiveConnections")
        .await?;
    active.sort_by_key(|path| *path != primary);
    for connection in &active {
        let connection = at(ACTIVE, connection.as_str());
        // A connection that ends meanwhile brings nothing.
        if let Ok(config) = bus
            .property::<OwnedObjectPath>(connection, "Ip4Config")
            .await
            && config.as_str() != "/"
        {
            let config = at(IP4, config.as_str());
            let servers =
                bus.property::<Vec<BTreeMap<String, OwnedVariant>>>(config, "NameserverData");
            let servers = servers.await?;
            add(&mut found, servers.iter().filter_map(address), own);
            add_search(&mut found, bus, config).await?;
        }
        if let Ok(config) = bus
            .property::<OwnedObjectPath>(connection, "Ip6Config")
            .await
            && config.as_str() != "/"
        {
            let config = at(IP6, config.as_str());
            let servers = bus.property::<Vec<Vec<u8>>>(config, "Nameservers").await?;
            let servers = servers.into_iter().filter_map(|octets| {
                let octets = <[u8; 16]>::try_from(octets).ok()?;
                Some(Ipv6Addr::from(octets).into())
            });
            add(&mut found, servers, own);
            add_search(&mut found, bus, config).await?;
        }
    }
    Ok(found)
}

/// Has it name `nameservers` alone in `/etc/resolv.conf`, and search `search`.
pub(super) async fn apply(
    bus: &Bus,
    nameservers: &[IpAddr],
    search: &[String],
) -> Result<(), DnsError> {
    let text = render(nameservers, search);
    if read_bounded(Path::new(FILE)).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    write(&text).map_err(|source| DnsError::Unwritable {
        path: FILE.into(),
        source,
    })?;
    reload(bus).await
}

/// Tells whether our section is among its settings.
pub(super) fn is_applied() -> bool {
    Path::new(FILE).exists()
}

/// Takes our section out again; tells whether there was one.
pub(super) async fn revert(bus: Option<&Bus>) -> Result<bool, DnsError> {
    match fs::remove_file(FILE) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => {
            return Err(DnsError::Unwritable {
                path: FILE.into(),
                source,
            });
        }
    }
    if let Some(bus) = bus {
        reload(bus).await?;
    }
    Ok(true)
}

async fn reload(bus: &Bus) -> Result<(), DnsError> {
    bus.call(MANAGER, "Reload", &RELOAD_CONF).await?;
    Ok(())
}

fn write(text: &str) -> io::Result<()> {
    fs::create_dir_all(FOLDER)?;
    // A name that it does not read.
    let beside = format!("{FOLDER}/.agentnet.new");
    fs::write(&beside, text)?;
    fs::set_permissions(&beside, Permissions::from_mode(0o644))?;
    fs::rename(beside, FILE)
}

fn render(nameservers: &[IpAddr], search: &[String]) -> String {
    let servers = nameservers
        .iter()
        .map(IpAddr::to_string)
        .collect::<Vec<_>>();
    let mut lines = vec![
        "# Written by agentnet: its resolver answers agents' names and forwards all others."
            .to_owned(),
        "# Gone when the node stops.".to_owned(),
        "[global-dns]".to_owned(),
    ];
    if !search.is_empty() {
        lines.push(format!("searches={}", search.join(",")));
    }
    lines.push("[global-dns-domain-*]".to_owned());
    lines.push(format!("servers={}", servers.join(",")));
    lines.push(String::new());
    lines.join("\n")
}

const fn at<'a>(interface: &'static str, path: &'a str) -> Object<'a> {
    Object {
        service: SERVICE,
        path,
        interface,
    }
}

fn address(data: &BTreeMap<String, OwnedVariant>) -> Option<IpAddr> {
    let text = String::try_from(data.get("address")?.clone()).ok()?;
    text.parse().ok()
}

fn add(found: &mut Applied, servers: impl Iterator<Item = IpAddr>, own: &[IpAddr]) {
    for server in servers {
        let at = SocketAddr::new(server, PORT);
        if !own.contains(&server) && !found.upstream.contains(&at) {
            found.upstream.push(at);
        }
    }
}

async fn add_search(found: &mut Applied, bus: &Bus, config: Object<'_>) -> Result<(), BusError> {
    for name in ["Searches", "Domains"] {
        for domain in bus.property::<Vec<String>>(config, name).await? {
            // What is routed by domain completes no name.
            if !domain.starts_with('~') && !found.search.contains(&domain) {
                found.search.push(domain);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_names_us_alone() {
        let servers = ["fd11:2233:4455:1::a".parse().unwrap()];

        let text = render(
            &servers,
            &["acme.agent".to_owned(), "corp.example".to_owned()],
        );

        assert!(
            text.contains("[global-dns]\nsearches=acme.agent,corp.example\n"),
            "{text}"
        );
        assert!(
            text.ends_with("[global-dns-domain-*]\nservers=fd11:2233:4455:1::a\n"),
            "{text}"
        );
        assert!(!render(&servers, &[]).contains("searches"));
    }

    #[test]
    fn ours_is_no_nameserver_of_a_connection() {
        let own = ["fd11:2233:4455:1::a".parse().unwrap()];
        let theirs = "192.0.2.1".parse().unwrap();
        let mut found = Applied::default();

        add(&mut found, [own[0], theirs, theirs].into_iter(), &own);

        assert_eq!(found.upstream, [SocketAddr::new(theirs, PORT)]);
    }
}
