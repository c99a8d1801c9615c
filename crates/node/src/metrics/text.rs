//! Families as text: OpenMetrics 1.0, and Prometheus' older text format 0.0.4.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use super::Snapshot;
use super::families::{Family, Kind, Sample, Value, collect};

/// What the one who asks can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4, which everything reads.
    Classic,
}

impl Format {
    /// From the `Accept` header of a request.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Classic,
        }
    }

    /// For the `Content-Type` header of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

#[derive(Debug)]
struct Collected(Vec<(Family, Vec<Sample>)>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (family, samples) in &self.0 {
            let unit = Unit::Other(family.unit.to_owned());
            let unit = (!family.unit.is_empty()).then_some(&unit);
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Info => MetricType::Info,
            };
            let help = format!("{}.", family.help);
            let mut metric = encoder.encode_descriptor(family.stem, &help, unit, kind)?;
            for (values, value) in samples {
                let labels: Vec<(&str, &str)> =
                    family.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
                match family.kind {
                    Kind::Info => metric.encode_info(&labels)?,
                    // Without labels there are to be no braces.
                    _ if labels.is_empty() => put(&mut metric, family.kind, *value)?,
                    _ => put(&mut metric.encode_family(&labels)?, family.kind, *value)?,
                }
            }
        }
        Ok(())
    }
}

fn put(metric: &mut MetricEncoder<'_>, kind: Kind, value: Value) -> fmt::Result {
    let none: Option<&Exemplar<NoLabelSet, f64>> = None;
    match (kind, value) {
        (Kind::Counter, Value::Count(count)) => metric.encode_counter(&count, none),
        (Kind::Counter, Value::Measure(measure)) => metric.encode_counter(&measure, none),
        (_, Value::Count(count)) => metric.encode_gauge(&count),
        (_, Value::Measure(measure)) => metric.encode_gauge(&measure),
    }
}

/// All metrics of a snapshot.
///
/// # Errors
/// Never in practice: writing to a string does not fail.
pub fn text(snapshot: &Snapshot, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(collect(snapshot))));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(match format {
        Format::OpenMetrics => text,
        Format::Classic => classic(&text),
    })
}

/// The older format names a family as its samples, knows neither units nor
/// infos, and has no end.
fn classic(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // The kind comes after the help, but both lines need the suffix.
    let mut help = "";
    for line in text.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest;
            continue;
        }
        if let Some((name, of)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match of {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                _ => ("", of),
            };
            let help = help.strip_prefix(name).unwrap_or_default();
            out.push_str(&format!("# HELP {name}{suffix}{help}\n# TYPE {name}{suffix} {kind}\n"));
            continue;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}
