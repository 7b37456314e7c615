//! Other domains: what their operators handed over, and what is handed to them.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::gateway::server::GatewayCommand;
use crate::id::DomainId;
use crate::node::gateway::{GatewayConfig, GatewayError, others, setup};
use crate::statement::Statement;
use crate::statement::peering::Peering;

/// Larger files are no domain's: 64 statements of 16 KiB, and the names around them.
const MAX_FILE: u64 = 2 << 20; // bytes

/// How often host names are looked up anew.
const LOOK_UP: Duration = Duration::from_secs(200);

/// Reads the files that the settings name, below the gateway's directory where they are not whole paths.
pub(super) fn load(config: &GatewayConfig, own: &DomainId) -> Result<Vec<Peering>, GatewayError> {
    let files = config.settings.peering.files.iter();
    let files = files.map(|file| config.dir.join(file));
    files.map(|file| read(&file, own)).collect()
}

fn read(path: &Path, own: &DomainId) -> Result<Peering, GatewayError> {
    let file = || path.to_owned();
    let mut text = String::new();
    let opened = fs::File::open(path);
    let taken = opened.and_then(|f| f.take(MAX_FILE).read_to_string(&mut text));
    taken.map_err(|source| {
        let file = file();
        GatewayError::PeeringFile { file, source }
    })?;
    let peering = Peering::parse(&text);
    let peering = peering.map_err(|why| GatewayError::Peering { file: file(), why })?;
    if peering.is_of(own) {
        return Err(GatewayError::OwnDomain(file()));
    }
    Ok(peering)
}

/// Tells the server where the gateways of other domains are, again and again.
pub(super) async fn introduce(peerings: Vec<Peering>, commands: mpsc::Sender<GatewayCommand>) {
    if peerings.is_empty() {
        return;
    }
    loop {
        for peering in &peerings {
            let gateways = peering.gateways().to_vec();
            others::introduce(gateways, peering.prefix(), commands.clone()).await;
        }
        tokio::time::sleep(LOOK_UP).await;
    }
}

/// Returns what another domain needs to peer with this gateway's, as the registry says now.
pub async fn export(config: &GatewayConfig) -> Result<String, GatewayError> {
    let keys = setup::load(&config.dir)?;
    let client = keys.connect().await?;
    let registry = Statement::open(client.statement())?;
    let gateways = client.gateways();
    if gateways.is_empty() {
        return Err(GatewayError::NoGateways);
    }
    Ok(Peering::write(keys.domain, registry, gateways))
}
