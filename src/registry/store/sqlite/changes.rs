use sqlx::query;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::id::{AgentId, NetworkId, UnixTime};
use crate::registry::store::sqlite::{millis, number, parsed, signed, text};
use crate::registry::store::{Change, Page, StoreError};
use crate::wire::api::registry::EventKind;

/// Most changes of one kind in a page; a page of the largest statements is a megabyte.
const PAGE: usize = 16;

const CONSENTS: &str = "SELECT ver AS at, text FROM consents
     WHERE network = ?1 AND (issuer = ?2 OR subject = ?2) AND ver > ?3 AND expires > ?4
     ORDER BY at LIMIT ?5";

const REQUESTS: &str = "SELECT ver AS at, text FROM requests
     WHERE network = ?1 AND target IN (SELECT name FROM names WHERE network = ?1 AND agent = ?2)
     AND ver > ?3 AND expires > ?4
     ORDER BY at LIMIT ?5";

/// A peer's record shows when it changes, and when the peer's consent does.
const RECORDS: &str = "SELECT at, text FROM (
         SELECT ver AS at, text, lease FROM records WHERE network = ?1 AND agent = ?2
         UNION ALL
         SELECT max(r.ver, c.ver), r.text, r.lease FROM consents c
         JOIN records r ON r.network = c.network AND r.agent = c.issuer
         WHERE c.network = ?1 AND c.subject = ?2 AND c.issuer <> ?2
         AND c.active = 1 AND c.expires > ?4
     ) WHERE at > ?3 AND lease > ?4 ORDER BY at LIMIT ?5";

const FAREWELLS: &str = "SELECT f.ver AS at, said.text FROM farewells_to f
     JOIN farewells said ON said.network = f.network AND said.agent = f.agent
     WHERE f.network = ?1 AND f.peer = ?2 AND f.ver > ?3 AND said.expires > ?4
     ORDER BY at LIMIT ?5";

const REVOCATIONS: &str = "SELECT ver AS at, text FROM revocations
     WHERE network = ?1 AND ?2 <> '' AND ver > ?3 AND ?4 > 0 ORDER BY at LIMIT ?5";

pub(super) async fn of_member(
    tx: &mut SqliteConnection,
    network: &NetworkId,
    agent: &AgentId,
    (after, now): (u64, UnixTime),
) -> Result<Page, StoreError> {
    let (id, agent) = (network.to_string(), agent.to_string());
    let upto = query("SELECT ver FROM networks WHERE network = ?")
        .bind(&id)
        .fetch_optional(&mut *tx)
        .await?;
    let upto = upto.map_or(Ok(0), |row| number(&row, "ver"))?;
    let mut lists = Vec::new();
    for (kind, sql) in [
        (EventKind::Revocation, REVOCATIONS),
        (EventKind::Record, FAREWELLS),
        (EventKind::Record, RECORDS),
        (EventKind::Consent, CONSENTS),
        (EventKind::Request, REQUESTS),
    ] {
        let rows = query(sql)
            .bind(&id)
            .bind(&agent)
            .bind(signed(after))
            .bind(millis(now))
            .bind(limit())
            .fetch_all(&mut *tx)
            .await?;
        let read = |row| change(row, kind, Some(*network));
        lists.push(rows.iter().map(read).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(merge(lists, upto))
}

pub(super) async fn of_gateways(
    tx: &mut SqliteConnection,
    after: u64,
    now: UnixTime,
) -> Result<Page, StoreError> {
    let upto = domain_version(tx).await?;
    let gateways = gateways(tx, after, now).await?;
    Ok(merge(vec![gateways], upto))
}

pub(super) async fn of_domain(
    tx: &mut SqliteConnection,
    after: u64,
    now: UnixTime,
) -> Result<Page, StoreError> {
    let upto = domain_version(tx).await?;
    let mut lists = vec![gateways(tx, after, now).await?];
    for (kind, sql) in [
        (
            EventKind::Network,
            "SELECT network, domain_ver AS at, root_grant AS text FROM networks
             WHERE domain_ver > ? AND root_grant IS NOT NULL ORDER BY at LIMIT ?",
        ),
        (
            EventKind::Revocation,
            "SELECT network, domain_ver AS at, text FROM revocations
             WHERE domain_ver > ? ORDER BY at LIMIT ?",
        ),
    ] {
        let rows = query(sql)
            .bind(signed(after))
            .bind(limit())
            .fetch_all(&mut *tx)
            .await?;
        let read = |row| change(row, kind, Some(parsed(row, "network")?));
        lists.push(rows.iter().map(read).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(merge(lists, upto))
}

async fn gateways(
    tx: &mut SqliteConnection,
    after: u64,
    now: UnixTime,
) -> Result<Vec<Change>, StoreError> {
    let rows = query(
        "SELECT domain_ver AS at, text FROM gateways
         WHERE domain_ver > ? AND lease > ? ORDER BY at LIMIT ?",
    )
    .bind(signed(after))
    .bind(millis(now))
    .bind(limit())
    .fetch_all(tx)
    .await?;
    let read = |row| change(row, EventKind::Gateway, None);
    rows.iter().map(read).collect()
}

async fn domain_version(tx: &mut SqliteConnection) -> Result<u64, StoreError> {
    let row = query("SELECT ver FROM meta").fetch_one(tx).await?;
    number(&row, "ver")
}

fn change(
    row: &SqliteRow,
    kind: EventKind,
    network: Option<NetworkId>,
) -> Result<Change, StoreError> {
    Ok(Change {
        at: number(row, "at")?,
        kind,
        network,
        text: text(row, "text")?,
    })
}

/// Merges lists in version order, up to where the shortest cut list ends.
fn merge(lists: Vec<Vec<Change>>, upto: u64) -> Page {
    let cut = lists
        .iter()
        .filter(|list| list.len() == PAGE)
        .filter_map(|list| list.last().map(|change| change.at))
        .min();
    let mut changes = lists.into_iter().flatten().collect::<Vec<_>>();
    changes.sort_by_key(|change| change.at);
    let Some(cut) = cut else {
        return Page {
            changes,
            upto,
            more: false,
        };
    };
    changes.retain(|change| change.at <= cut);
    Page {
        changes,
        upto: cut,
        more: true,
    }
}

fn limit() -> i64 {
    i64::try_from(PAGE).expect("a page is small")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(from: u64, n: u64) -> Vec<Change> {
        (from..from + n)
            .map(|at| Change {
                at,
                kind: EventKind::Record,
                network: None,
                text: String::new(),
            })
            .collect()
    }

    #[test]
    fn a_page_ends_where_its_first_cut_list_does() {
        let page = merge(vec![list(1, 16), list(5, 16), list(9, 3)], 99);

        assert_eq!((page.upto, page.more), (16, true));
        assert_eq!(page.changes.last().map(|c| c.at), Some(16));
        let last = merge(vec![list(1, 3), list(2, 4)], 99);
        assert_eq!((last.upto, last.more, last.changes.len()), (99, false, 7));
    }
}
