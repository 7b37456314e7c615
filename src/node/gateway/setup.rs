use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::GatewaySettings;
use crate::config::gateway::WssSettings;
use crate::gateway::wss::{HANDSHAKE, PATH, WssConfig};
use crate::id::{Did, DomainId, IdentityKey, TunnelSecret};
use crate::node::gateway::GatewayError;
use crate::os::files::{StateFile, create_folder, create_private};
use crate::os::tls::Pin;
use crate::os::wss::{CertificateError, self_signed, server_of};
use crate::os::{clock, paths, random};
use crate::registry::client::{Caller, RegistryClient};
use crate::statement::token::OperatorToken;
use crate::wire::api::registry::GatewayBody;

/// Version of the key file's contents.
const VERSION: u32 = 1;

/// Under which name a service manager hands over what is in `gateway.key`.
const CREDENTIAL: &str = "agentnet.gateway-key";

/// What a certificate that a gateway made itself is for; nobody looks.
const CERTIFICATE_NAME: &str = "gateway.invalid";

/// The commented settings that `init` fills in.
const SAMPLE: &str = include_str!("../../../config/gateway.toml");

/// What a gateway must not forget.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Keys {
    pub(super) identity: IdentityKey,
    pub(super) tunnel: TunnelSecret,
    /// Makes the tokens of Resets: any 32 secret bytes.
    reset: TunnelSecret,
    pub(super) url: String,
    pub(super) pin: String,
    pub(super) domain: DomainId,
}

impl Keys {
    pub(super) fn reset_key(&self) -> [u8; 32] {
        self.reset.x25519().to_bytes()
    }

    /// Reaches the registry.
    pub(super) async fn connect(&self) -> Result<RegistryClient, GatewayError> {
        let pin = self.pin.parse::<Pin>().map_err(|_| GatewayError::BadPin)?;
        Ok(RegistryClient::connect(&self.url, pin, self.domain, clock::unix()).await?)
    }

    /// Returns what the registry is to say of this gateway.
    pub(super) fn body(&self, reach: Reach, region: Option<String>) -> GatewayBody {
        let wss = Some("wss").filter(|_| !reach.wss.is_empty());
        GatewayBody {
            gateway: self.identity.did(),
            tunnel: self.tunnel.public(),
            udp: reach.udp,
            wss: reach.wss,
            region,
            features: ["udp"].into_iter().chain(wss).map(str::to_owned).collect(),
        }
    }
}

/// Where agents find a gateway.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Reach {
    /// `host:port`.
    pub(super) udp: Vec<String>,
    /// `wss://host:port/path`.
    pub(super) wss: Vec<String>,
}

/// What a new gateway is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub dir: PathBuf,
    pub listen: SocketAddr,
    /// `host:port` agents use, best first; empty means the listening address.
    pub advertise: Vec<String>,
    pub region: Option<String>,
    /// Where it takes WebSockets too; None where it takes none.
    pub wss: Option<SocketAddr>,
}

/// A gateway that was set up.
#[derive(Clone, Debug)]
pub struct Initialised {
    pub gateway: Did,
    pub udp: Vec<String>,
    pub settings: PathBuf,
}

/// Makes a gateway's keys and enrols it as the operator; after an error nothing is left behind.
pub async fn init(plan: &Plan, operator: &OperatorToken) -> Result<Initialised, GatewayError> {
    let (key, settings) = (key_file(&plan.dir), plan.dir.join("gateway.toml"));
    if let Some(found) = [&key, &settings].into_iter().find(|path| path.exists()) {
        return Err(GatewayError::Exists(found.clone()));
    }
    let udp = match plan.advertise.as_slice() {
        [] if plan.listen.ip().is_unspecified() || plan.listen.port() == 0 => {
            return Err(GatewayError::NeedsAddress(plan.listen));
        }
        [] => vec![plan.listen.to_string()],
        given => given.to_vec(),
    };
    let keys = Keys {
        identity: IdentityKey::from_seed(random::seed()),
        tunnel: TunnelSecret::from_seed(random::seed()),
        reset: TunnelSecret::from_seed(random::seed()),
        url: operator.url.clone(),
        pin: operator.pin.clone(),
        domain: operator.domain,
    };
    let wss = plan.wss.map(|at| wss_at(&udp, at.port()));
    let reach = Reach {
        udp: udp.clone(),
        wss: wss.unwrap_or_default(),
    };
    // The registry comes first: whom it does not know is no gateway.
    let client = keys.connect().await?;
    let caller = Caller::domain(&operator.key, clock::unix());
    client
        .enrol_gateway(&caller, &keys.body(reach, plan.region.clone()))
        .await?;
    create_folder(&plan.dir)?;
    let written = write(plan, &keys, &key, &settings);
    if written.is_err() {
        for path in [&key, &settings] {
            drop(fs::remove_file(path));
        }
    }
    written?;
    Ok(Initialised {
        gateway: keys.identity.did(),
        udp,
        settings,
    })
}

fn write(plan: &Plan, keys: &Keys, key: &Path, settings: &Path) -> Result<(), GatewayError> {
    let (file, _) = StateFile::open::<Keys>(key, VERSION)?;
    file.save(keys)?;
    Ok(create_private(settings, &settings_text(plan))?)
}

/// Reads a gateway's keys; a damaged file is an error and stays as it is.
///
/// Those that the service manager hands over go before those in the directory.
pub(super) fn load(dir: &Path) -> Result<Keys, GatewayError> {
    let given = paths::credential(CREDENTIAL, &paths::environment);
    let file = given.unwrap_or_else(|| key_file(dir));
    let (_, keys) = StateFile::open::<Keys>(&file, VERSION)?;
    keys.ok_or_else(|| GatewayError::Missing(dir.to_owned()))
}

/// Returns where agents reach a gateway: as the settings say, else where it listens.
pub(super) fn reach(
    settings: &GatewaySettings,
    listens: &[SocketAddr],
    wss: Option<SocketAddr>,
) -> Reach {
    let real = listens.iter().filter(|at| !at.ip().is_unspecified());
    let udp = match settings.udp.advertise.as_slice() {
        [] => real.map(SocketAddr::to_string).collect(),
        given => given.to_vec(),
    };
    let wss = match (wss, settings.wss.advertise.as_slice()) {
        (None, _) => Vec::new(),
        (Some(at), []) => wss_at(&udp, at.port()),
        (Some(_), given) => given.to_vec(),
    };
    Reach { udp, wss }
}

/// Returns where WebSockets are on the hosts of `udp`, each once.
fn wss_at(udp: &[String], port: u16) -> Vec<String> {
    let mut all = Vec::new();
    for endpoint in udp {
        let host = endpoint.rsplit_once(':').map_or("", |(host, _)| host);
        let target = format!("wss://{host}:{port}{PATH}");
        if !all.contains(&target) {
            all.push(target);
        }
    }
    all
}

/// What WebSockets need, and what gives them another certificate.
pub(super) type Carried = (WssConfig, watch::Sender<Arc<ServerConfig>>);

/// Returns what those are shown who connect to a gateway.
pub(super) fn certificate(wss: &WssSettings) -> Result<Arc<ServerConfig>, CertificateError> {
    match (&wss.certificate, &wss.key) {
        (Some(certificate), Some(key)) => server_of(certificate, key),
        (Some(_) | None, _) => self_signed(&[CERTIFICATE_NAME.to_owned()]),
    }
}

/// Returns the same for a gateway of these settings; None where it has none.
pub(super) fn wss(settings: &GatewaySettings) -> Result<Option<Carried>, CertificateError> {
    let wss = &settings.wss;
    let Some(listen) = wss.listen else {
        return Ok(None);
    };
    let (renew, tls) = watch::channel(certificate(wss)?);
    let config = WssConfig {
        listen,
        tls,
        connections: wss.connections,
        per_source: wss.connections_per_source,
        handshake: HANDSHAKE,
        // Agents say something every 25 s; after two leases they are no more attached anyway.
        idle: 2 * Duration::from_secs(settings.attach.lease),
    };
    Ok(Some((config, renew)))
}

fn key_file(dir: &Path) -> PathBuf {
    dir.join("gateway.key")
}

/// Returns the sample with the plan's values in place of the defaults.
fn settings_text(plan: &Plan) -> String {
    let quoted = |all: &[String]| {
        let all = all
            .iter()
            .map(|one| toml::Value::from(one.as_str()).to_string());
        format!("[{}]", all.collect::<Vec<_>>().join(", "))
    };
    let text = |one: &str| toml::Value::from(one).to_string();
    let mut filled = vec![(("[udp]", "#listen = "), quoted(&[plan.listen.to_string()]))];
    if !plan.advertise.is_empty() {
        filled.push((("[udp]", "#advertise = "), quoted(&plan.advertise)));
    }
    if let Some(region) = &plan.region {
        filled.push((("[udp]", "#region = "), text(region)));
    }
    if let Some(at) = plan.wss {
        filled.push((("[wss]", "#listen = "), text(&at.to_string())));
    }
    let mut section = "";
    let mut all = String::new();
    for line in SAMPLE.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let is_here = |start: &(&str, &str)| start.0 == section && line.starts_with(start.1);
        match filled.iter().find(|(start, _)| is_here(start)) {
            Some(((_, start), value)) => all.extend([&start[1..], value.as_str()]),
            None => all.push_str(line),
        }
        all.push('\n');
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_hold_what_was_planned() {
        let plan = Plan {
            dir: "/unused".into(),
            listen: "0.0.0.0:16201".parse().unwrap(),
            advertise: vec!["gw.example.org:16201".to_owned()],
            region: Some("eu \"west\"".to_owned()),
            wss: Some("[::]:443".parse().unwrap()),
        };

        let read = toml::from_str::<GatewaySettings>(&settings_text(&plan)).unwrap();

        assert_eq!(read.udp.listen, [plan.listen]);
        assert_eq!(
            (read.udp.advertise, read.udp.region),
            (plan.advertise, plan.region)
        );
        assert_eq!(read.attach, GatewaySettings::default().attach);
        assert_eq!((read.wss.listen, read.wss.advertise), (plan.wss, vec![]));
    }

    #[test]
    fn a_gateway_advertises_where_it_listens_but_no_wildcard() {
        let settings = GatewaySettings::default();
        let listens = ["0.0.0.0:1".parse().unwrap(), "192.0.2.1:2".parse().unwrap()];

        assert_eq!(reach(&settings, &listens, None).udp, ["192.0.2.1:2"]);
    }

    #[test]
    fn websockets_are_where_udp_is_unless_the_settings_say_otherwise() {
        let mut settings = GatewaySettings::default();
        settings.udp.advertise = [
            "gw.example.org:16201",
            "[2001:db8::1]:1",
            "gw.example.org:2",
        ]
        .map(str::to_owned)
        .to_vec();
        let at = Some("[::]:443".parse().unwrap());

        let same = reach(&settings, &[], at).wss;
        settings.wss.advertise = vec!["wss://front.example.org/a2g".to_owned()];
        let given = reach(&settings, &[], at).wss;

        let expected = [
            "wss://gw.example.org:443/a2g",
            "wss://[2001:db8::1]:443/a2g",
        ];
        assert_eq!(same, expected);
        assert_eq!(given, settings.wss.advertise);
        assert!(reach(&settings, &[], None).wss.is_empty());
    }
}
