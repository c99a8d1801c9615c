//! Points of the cities where most data centres are, by the airport codes that
//! operators name them with. Degrees to a tenth: some ten kilometres.

/// One city.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) country: &'static str,
    pub(super) code: &'static str,
    /// Degrees north and east.
    pub(super) at: (f32, f32),
}

const fn c(country: &'static str, code: &'static str, north: f32, east: f32) -> Entry {
    Entry { country, code, at: (north, east) }
}

#[rustfmt::skip]
pub(super) static CITIES: &[Entry] = &[
    // North America
    c("us", "nyc", 40.7, -74.0), c("us", "ewr", 40.7, -74.2), c("us", "iad", 39.0, -77.5),
    c("us", "bos", 42.4, -71.1), c("us", "atl", 33.7, -84.4), c("us", "mia", 25.8, -80.2),
    c("us", "ord", 41.9, -87.6), c("us", "chi", 41.9, -87.6), c("us", "dfw", 32.8, -96.8),
    c("us", "iah", 29.8, -95.4), c("us", "den", 39.7, -105.0), c("us", "phx", 33.4, -112.1),
    c("us", "slc", 40.8, -111.9), c("us", "las", 36.2, -115.1), c("us", "lax", 34.1, -118.2),
    c("us", "sjc", 37.3, -121.9), c("us", "sfo", 37.8, -122.4), c("us", "pdx", 45.5, -122.7),
    c("us", "sea", 47.6, -122.3), c("us", "hnl", 21.3, -157.9),
    c("ca", "yul", 45.5, -73.6), c("ca", "yyz", 43.7, -79.4), c("ca", "yyc", 51.0, -114.1),
    c("ca", "yvr", 49.3, -123.1), c("mx", "mex", 19.4, -99.1), c("mx", "qro", 20.6, -100.4),
    // Europe
    c("gb", "lon", 51.5, -0.1), c("gb", "lhr", 51.5, -0.5), c("gb", "man", 53.5, -2.2),
    c("gb", "edi", 55.9, -3.2), c("ie", "dub", 53.3, -6.3), c("fr", "par", 48.9, 2.4),
    c("fr", "cdg", 49.0, 2.5), c("fr", "mrs", 43.3, 5.4), c("fr", "rbx", 50.7, 3.2),
    c("nl", "ams", 52.4, 4.9), c("be", "bru", 50.9, 4.4), c("lu", "lux", 49.6, 6.1),
    c("de", "fra", 50.1, 8.7), c("de", "ber", 52.5, 13.4), c("de", "muc", 48.1, 11.6),
    c("de", "nbg", 49.5, 11.1), c("de", "fsn", 50.5, 12.3), c("de", "ham", 53.6, 10.0),
    c("de", "dus", 51.2, 6.8), c("ch", "zrh", 47.4, 8.5), c("ch", "gva", 46.2, 6.1),
    c("at", "vie", 48.2, 16.4), c("it", "mil", 45.5, 9.2), c("it", "rom", 41.9, 12.5),
    c("es", "mad", 40.4, -3.7), c("es", "bcn", 41.4, 2.2), c("pt", "lis", 38.7, -9.1),
    c("dk", "cph", 55.7, 12.6), c("no", "osl", 59.9, 10.8), c("se", "sto", 59.3, 18.1),
    c("se", "arn", 59.7, 17.9), c("fi", "hel", 60.2, 24.9), c("is", "kef", 64.1, -21.9),
    c("ee", "tll", 59.4, 24.8), c("lv", "rix", 56.9, 24.1), c("lt", "vno", 54.7, 25.3),
    c("pl", "waw", 52.2, 21.0), c("cz", "prg", 50.1, 14.4), c("sk", "bts", 48.1, 17.1),
    c("hu", "bud", 47.5, 19.0), c("ro", "buh", 44.4, 26.1), c("bg", "sof", 42.7, 23.3),
    c("rs", "beg", 44.8, 20.5), c("gr", "ath", 38.0, 23.7), c("ua", "iev", 50.5, 30.5),
    c("ru", "mow", 55.8, 37.6), c("ru", "led", 59.9, 30.3),
    // Asia
    c("sg", "sin", 1.3, 103.8), c("jp", "tyo", 35.7, 139.7), c("jp", "nrt", 35.8, 140.4),
    c("jp", "osa", 34.7, 135.5), c("jp", "kix", 34.4, 135.2), c("hk", "hkg", 22.3, 114.2),
    c("tw", "tpe", 25.0, 121.6), c("kr", "sel", 37.6, 127.0), c("kr", "icn", 37.5, 126.5),
    c("cn", "bjs", 39.9, 116.4), c("cn", "sha", 31.2, 121.5), c("cn", "szx", 22.5, 114.1),
    c("in", "bom", 19.1, 72.9), c("in", "del", 28.6, 77.2), c("in", "blr", 13.0, 77.6),
    c("in", "maa", 13.1, 80.3), c("th", "bkk", 13.8, 100.5), c("vn", "sgn", 10.8, 106.7),
    c("vn", "han", 21.0, 105.9), c("my", "kul", 3.1, 101.7), c("id", "jkt", -6.2, 106.8),
    c("ph", "mnl", 14.6, 121.0), c("ae", "dxb", 25.2, 55.3), c("il", "tlv", 32.1, 34.8),
    c("tr", "ist", 41.0, 29.0), c("sa", "ruh", 24.7, 46.7), c("qa", "doh", 25.3, 51.5),
    // Oceania
    c("au", "syd", -33.9, 151.2), c("au", "mel", -37.8, 145.0), c("au", "bne", -27.5, 153.0),
    c("au", "per", -32.0, 115.9), c("au", "adl", -34.9, 138.6), c("nz", "akl", -36.8, 174.8),
    // South America
    c("br", "sao", -23.6, -46.6), c("br", "gru", -23.4, -46.5), c("br", "rio", -22.9, -43.2),
    c("br", "for", -3.7, -38.5), c("ar", "bue", -34.6, -58.4), c("ar", "eze", -34.8, -58.5),
    c("cl", "scl", -33.4, -70.7), c("co", "bog", 4.7, -74.1), c("pe", "lim", -12.0, -77.0),
    c("uy", "mvd", -34.9, -56.2), c("ec", "uio", -0.2, -78.5),
    // Africa
    c("za", "jnb", -26.2, 28.0), c("za", "cpt", -33.9, 18.4), c("ke", "nbo", -1.3, 36.8),
    c("ng", "los", 6.5, 3.4), c("eg", "cai", 30.0, 31.2), c("ma", "cmn", 33.6, -7.6),
    c("gh", "acc", 5.6, -0.2), c("tn", "tun", 36.8, 10.2),
];
