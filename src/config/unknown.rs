use toml::de::DeTable;

/// How alike two keys must be for one to be offered for the other (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.82;

/// A key that no setting has.
#[derive(Debug)]
pub(super) struct UnknownKey {
    pub(super) key: String,
    /// Byte offset of the key in the file.
    pub(super) at: usize,
}

/// Returns the first key of `table` that is neither in `known` nor a section of one.
pub(super) fn find(table: &DeTable<'_>, known: &[&str]) -> Option<UnknownKey> {
    find_below(table, "", known)
}

fn find_below(table: &DeTable<'_>, prefix: &str, known: &[&str]) -> Option<UnknownKey> {
    let mut entries = table.iter().collect::<Vec<_>>();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (name, value) in entries {
        let key = format!("{prefix}{}", name.get_ref());
        let section = format!("{key}.");
        if known.iter().any(|k| k.starts_with(&section)) {
            let inner = value.get_ref().as_table();
            if let Some(found) = inner.and_then(|t| find_below(t, &section, known)) {
                return Some(found);
            }
        } else if !known.contains(&key.as_str()) {
            let at = name.span().start;
            return Some(UnknownKey { key, at });
        }
    }
    None
}

/// Returns the known key most like `key`, comparing whole keys and last parts.
pub(super) fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let last = |text: &str| text.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |k: &str| {
        let whole = strsim::jaro_winkler(key, k);
        whole.max(strsim::jaro_winkler(&last(key), &last(k)) - 0.01)
    };
    let best = known.iter().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(best) >= ALIKE).then_some(*best)
}

/// Says what to write instead.
pub(super) fn advice(nearest: Option<&str>) -> String {
    match nearest {
        Some(key) => format!("did you mean `{key}`?"),
        None => "see the commented sample for what there is".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 3] = ["state", "udp.listen", "log.level"];

    #[test]
    fn a_typing_error_finds_its_key() {
        assert_eq!(nearest("stat", &KNOWN), Some("state"));
        assert_eq!(nearest("log.levle", &KNOWN), Some("log.level"));
        assert_eq!(nearest("level", &KNOWN), Some("log.level"));
        assert_eq!(nearest("mtu", &KNOWN), None);
    }

    #[test]
    fn the_first_unknown_key_of_a_file_is_found() {
        let text = "state = '/x'\n[udp]\nlisten = []\nport = 3\n[zeta]\na = 1\n";
        let table = DeTable::parse(text).unwrap();

        let found = find(table.get_ref(), &KNOWN).unwrap();

        assert_eq!(found.key, "udp.port");
        assert!(text[found.at..].starts_with("port"));
    }
}
