use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::config::GatewaySettings;
use crate::id::{Did, DomainId, IdentityKey, TunnelSecret};
use crate::node::gateway::GatewayError;
use crate::os::files::{StateFile, create_folder, create_private};
use crate::os::tls::Pin;
use crate::os::{clock, random};
use crate::registry::client::{Caller, RegistryClient};
use crate::statement::token::OperatorToken;
use crate::wire::api::registry::GatewayBody;

/// Version of the key file's contents.
const VERSION: u32 = 1;

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
    pub(super) fn body(&self, udp: Vec<String>, region: Option<String>) -> GatewayBody {
        GatewayBody {
            gateway: self.identity.did(),
            tunnel: self.tunnel.public(),
            udp,
            region,
            features: vec!["udp".to_owned()],
        }
    }
}

/// What a new gateway is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub dir: PathBuf,
    pub listen: SocketAddr,
    /// `host:port` agents use, best first; empty means the listening address.
    pub advertise: Vec<String>,
    pub region: Option<String>,
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
    // The registry comes first: whom it does not know is no gateway.
    let client = keys.connect().await?;
    let caller = Caller::domain(&operator.key, clock::unix());
    client
        .enrol_gateway(&caller, &keys.body(udp.clone(), plan.region.clone()))
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
pub(super) fn load(dir: &Path) -> Result<Keys, GatewayError> {
    let (_, keys) = StateFile::open::<Keys>(&key_file(dir), VERSION)?;
    keys.ok_or_else(|| GatewayError::Missing(dir.to_owned()))
}

/// Returns where agents reach a gateway: as the settings say, else where it listens.
pub(super) fn reach(settings: &GatewaySettings, listens: &[SocketAddr]) -> Vec<String> {
    if !settings.udp.advertise.is_empty() {
        return settings.udp.advertise.clone();
    }
    let real = listens.iter().filter(|at| !at.ip().is_unspecified());
    real.map(SocketAddr::to_string).collect()
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
    let mut filled = vec![("#listen = ", quoted(&[plan.listen.to_string()]))];
    if !plan.advertise.is_empty() {
        filled.push(("#advertise = ", quoted(&plan.advertise)));
    }
    if let Some(region) = &plan.region {
        filled.push(("#region = ", toml::Value::from(region.as_str()).to_string()));
    }
    let line = |line: &str| {
        let value = filled.iter().find(|(start, _)| line.starts_with(start));
        value.map_or_else(
            || line.to_owned(),
            |(start, value)| format!("{}{value}", &start[1..]),
        )
    };
    SAMPLE.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
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
        };

        let read = toml::from_str::<GatewaySettings>(&settings_text(&plan)).unwrap();

        assert_eq!(read.udp.listen, [plan.listen]);
        assert_eq!(
            (read.udp.advertise, read.udp.region),
            (plan.advertise, plan.region)
        );
        assert_eq!(read.attach, GatewaySettings::default().attach);
    }

    #[test]
    fn a_gateway_advertises_where_it_listens_but_no_wildcard() {
        let settings = GatewaySettings::default();
        let listens = ["0.0.0.0:1".parse().unwrap(), "192.0.2.1:2".parse().unwrap()];

        assert_eq!(reach(&settings, &listens), ["192.0.2.1:2"]);
    }
}
