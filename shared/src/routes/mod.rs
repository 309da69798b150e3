//! Which targets a finished upload goes to, and under which names. Spec: deliver.md §3–§4, core.md §8.
//!
//! ```text
//!   manifest ──► template ──► component by component: short enough ──► BlobName ──► one ResolvedTarget per target
//! ```

mod component;
mod template;

use jiff::civil::DateTime;
use jiff::fmt::strtime::BrokenDownTime;

use self::template::{Template, Values};
use crate::manifest::{INGEST_TIME, Manifest, file_name};
use crate::store::{BlobName, StoreUrl};
use crate::upload::{ResolvedTarget, UploadId};

/// The name of every upload when there is no routes file. Spec: DESIGN.md, `ROUTES_FILE`.
const BUILT_IN_TEMPLATE: &str = "{{.Year}}/{{.Month}}/{{.Day}}/{{.Filename}}_{{.UploadId}}";

/// All targets, and the rules that choose among them.
#[derive(Clone, Debug)]
pub struct Routes {
    targets: Vec<Target>,
    template: Template,
}

/// One place that copies go to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name that counts: in records, reports, `/info`, metrics.
    pub name: String,
    /// Where it is.
    pub store: StoreUrl,
}

/// Why an upload has no valid name in a target: one line, in which the sender's text is escaped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RouteError(pub String);

impl Routes {
    /// Without a routes file: every upload goes to `dex` and `edav`, by the built-in template.
    #[must_use]
    pub fn built_in(dex: StoreUrl, edav: StoreUrl) -> Self {
        let target = |name: &str, store| Target {
            name: name.to_owned(),
            store,
        };
        Self {
            targets: vec![target("dex", dex), target("edav", edav)],
            template: Template::parse(BUILT_IN_TEMPLATE).expect("a constant, and a test renders it"),
        }
    }

    /// All targets.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The target of this name.
    #[must_use]
    pub fn target(&self, name: &str) -> Option<&Target> {
        self.targets.iter().find(|target| target.name == name)
    }

    /// The targets of an upload with this manifest, as stored, and its name in each.
    ///
    /// # Errors
    /// The manifest makes no valid name: `unsafe path …`, or it has no time of creation: `bad ingest timestamp`.
    pub fn resolve(&self, id: UploadId, manifest: &Manifest) -> Result<Vec<ResolvedTarget>, RouteError> {
        let object = object_name(&self.template, id, manifest)?;
        let resolved = |target: &Target| ResolvedTarget {
            target: target.name.clone(),
            location: target.store.location(&object),
            object: object.clone(),
        };
        Ok(self.targets.iter().map(resolved).collect())
    }
}

/// The name that `template` gives to an upload. Spec: deliver.md §4, core.md §8.
fn object_name(template: &Template, id: UploadId, manifest: &Manifest) -> Result<BlobName, RouteError> {
    let value = |key: &str| manifest.get(key).map_or("", String::as_str);
    let id = id.to_string();
    let file_name = match file_name(manifest) {
        None | Some("") => id.clone(),
        Some(name) => name.replace('\\', "_"),
    };
    let (stem, extension) = component::split_extension(&file_name);
    let mut path = template.render(&Values {
        created: ingest_time(value(INGEST_TIME)).ok_or_else(|| RouteError("bad ingest timestamp".to_owned()))?,
        upload_id: &id,
        stem,
        data_stream_id: value("data_stream_id"),
        data_stream_route: value("data_stream_route"),
    });
    path.push_str(extension);
    let components: Vec<_> = path
        .strip_prefix('/')
        .unwrap_or(&path)
        .split('/')
        .map(component::fit)
        .collect();
    BlobName::new(components.join("/")).map_err(|error| RouteError(error.to_string()))
}

/// Date and time of an RFC 3339 text as they are written there, in its own offset.
fn ingest_time(text: &str) -> Option<DateTime> {
    let parsed = ["%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%dT%H:%M:%S%.f%:z"]
        .iter()
        .find_map(|format| BrokenDownTime::parse(format, text).ok())?;
    let written = parsed.to_datetime().ok()?;
    // The parser also takes numbers with fewer digits.
    text.starts_with(&written.strftime("%Y-%m-%dT%H:%M:%S").to_string())
        .then_some(written)
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const U: &str = "3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90";

    fn id() -> UploadId {
        U.parse().unwrap()
    }

    fn manifest(file_name: &str) -> Manifest {
        [
            ("filename", file_name),
            ("dex_ingest_datetime", "2024-03-07T05:09:08.123456789Z"),
            ("data_stream_id", "dextesting"),
            ("data_stream_route", "testevent1"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    fn name(template: &str, manifest: &Manifest) -> Result<String, String> {
        match object_name(&Template::parse(template).unwrap(), id(), manifest) {
            Ok(name) => Ok(name.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_specifications_examples_have_their_names() {
        for (template, file, expected) in [
            (
                "{{.Year}}/{{.Month}}/{{.Day}}/{{.Filename}}",
                "dex-smoke-test.csv",
                "2024/03/07/dex-smoke-test.csv".to_owned(),
            ),
            (
                "phdo-testing/{{.Year}}/{{.Month}}/{{.Day}}/{{.Filename}}_{{.UploadId}}",
                "t.txt",
                format!("phdo-testing/2024/03/07/t_{U}.txt"),
            ),
            (
                "{{.DataStreamID}}-{{.DataStreamRoute}}/{{.Hour}}/{{ .Filename }}",
                "seq.fastq.gz",
                "dextesting-testevent1/05/seq.fastq.gz".to_owned(),
            ),
            (
                "routine-immunization-zip/{{.Year}}/{{.Filename}}",
                "README",
                "routine-immunization-zip/2024/README".to_owned(),
            ),
            ("{{.Filename}}_{{.UploadId}}", ".profile", format!("_{U}.profile")),
            ("{{.Filename}}_{{.UploadId}}", "x.csv", format!("x_{U}.csv")),
            ("{{.UploadId}}", "x.csv", format!("{U}.csv")),
            ("{{.Filename}}", "name.", "name.".to_owned()),
        ] {
            assert_eq!(name(template, &manifest(file)), Ok(expected), "{template}");
        }
    }

    #[test]
    fn without_a_routes_file_an_upload_goes_to_dex_and_edav() {
        let routes = Routes::built_in(StoreUrl::File("/srv/dex".into()), StoreUrl::File("/srv/edav".into()));
        let resolved = routes.resolve(id(), &manifest("a.tar.gz")).unwrap();
        let object = format!("2024/03/07/a.tar_{U}.gz");
        let expected = ["dex", "edav"].map(|target| ResolvedTarget {
            target: target.to_owned(),
            object: BlobName::new(&*object).unwrap(),
            location: format!("/srv/{target}/{object}"),
        });
        assert_eq!(resolved, expected);
        assert_eq!(routes.target("edav").unwrap().name, "edav");
        assert!(routes.target("Edav").is_none());
        assert_eq!(routes.targets().len(), 2);
    }

    #[test]
    fn the_upload_id_stands_in_for_a_missing_or_empty_file_name() {
        let mut without = manifest("");
        assert_eq!(name("x/{{.Filename}}", &without), Ok(format!("x/{U}")));
        without.remove("filename");
        assert_eq!(name("x/{{.Filename}}", &without), Ok(format!("x/{U}")));
    }

    #[test]
    fn dates_are_those_written_in_the_timestamp() {
        for (text, expected) in [
            ("2024-03-07T05:09:08Z", "2024/03/07/05"),
            ("2024-12-31T23:00:00.5-02:00", "2024/12/31/23"),
            ("0999-01-02T00:00:00+05:30", "999/01/02/00"),
        ] {
            let mut manifest = manifest("f");
            manifest.insert(INGEST_TIME.to_owned(), text.to_owned());
            assert_eq!(
                name("{{.Year}}/{{.Month}}/{{.Day}}/{{.Hour}}", &manifest).as_deref(),
                Ok(expected)
            );
        }
    }

    #[test]
    fn what_is_no_rfc_3339_time_is_a_bad_ingest_timestamp() {
        let mut manifest = manifest("f");
        manifest.remove(INGEST_TIME);
        assert_eq!(name("x", &manifest), Err("bad ingest timestamp".to_owned()));
        for bad in [
            "",
            "now",
            "2024-03-07",
            "2024-03-07T05:09:08",
            "2024-3-7T5:9:8Z",
            "2024-13-07T05:09:08Z",
            "2024-03-07 05:09:08Z",
            "2024-03-07T05:09:08Zx",
            "+2024-03-07T05:09:08Z",
        ] {
            manifest.insert(INGEST_TIME.to_owned(), bad.to_owned());
            assert_eq!(
                name("x", &manifest),
                Err("bad ingest timestamp".to_owned()),
                "{bad:?} was accepted"
            );
        }
    }

    #[test]
    fn a_backslash_in_a_file_name_becomes_an_underscore() {
        assert_eq!(
            name("{{.Filename}}", &manifest("a\\b.c\\sv")).as_deref(),
            Ok("a_b.c_sv")
        );
    }

    #[test]
    fn one_leading_slash_is_dropped_and_unsafe_paths_are_refused_in_one_line() {
        assert_eq!(name("/x/{{.Filename}}", &manifest("f")).as_deref(), Ok("x/f"));
        for (template, file) in [
            ("//x", "f"),
            ("x/", "README"),
            ("{{.Filename}}", ".."),
            ("x/{{.Filename}}", "../../etc/passwd"),
            (".ferry/{{.Filename}}", "f"),
            ("x/{{.Filename}}", "a\r\nb"),
            ("x\\{{.Filename}}", "f"),
        ] {
            let error = name(template, &manifest(file)).unwrap_err();
            assert!(error.starts_with("unsafe path "), "{error}");
            assert!(!error.contains(char::is_control), "{error}");
        }
        let long = "component/".repeat(103) + "{{.Filename}}";
        assert!(name(&long, &manifest("f")).unwrap_err().starts_with("unsafe path "));
    }

    #[test]
    fn a_file_name_of_1000_characters_gets_a_name_that_fits() {
        let name = name(BUILT_IN_TEMPLATE, &manifest(&("x".repeat(1000) + ".csv"))).unwrap();
        let last = name.rsplit('/').next().unwrap();
        assert_eq!(last.len(), 255);
        assert!(last.starts_with("xxx") && last.contains('~') && last.ends_with(".csv"));
    }

    fn hostile_text() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a.\\\\/~ä\u{7}]{0,12}",
            vec(any::<char>(), 0..40).prop_map(String::from_iter),
            ("[aä./]{1,4}", 0..500_usize).prop_map(|(text, times)| text.repeat(times)),
        ]
    }

    proptest! {
        #[test]
        fn any_manifest_gives_an_error_or_a_name_safe_everywhere(
            mut manifest in btree_map(
                select(vec!["filename", "received_filename", "data_stream_id", "data_stream_route"]).prop_map(str::to_owned),
                hostile_text(),
                0..5,
            ),
            template in select(vec![BUILT_IN_TEMPLATE, "{{.DataStreamID}}/{{.DataStreamRoute}}-{{.Filename}}", "{{.Filename}}"]),
        ) {
            manifest.insert(INGEST_TIME.to_owned(), "2024-03-07T05:09:08Z".to_owned());
            match object_name(&Template::parse(template).unwrap(), id(), &manifest) {
                Ok(object) => {
                    prop_assert!(BlobName::new(object.as_str()).is_ok());
                    prop_assert!(object.as_str().split('/').all(|part| (1..=component::MAX_BYTES).contains(&part.len())));
                }
                Err(RouteError(text)) => {
                    prop_assert!(text.starts_with("unsafe path "));
                    prop_assert!(!text.contains(char::is_control));
                }
            }
        }

        #[test]
        fn any_accepted_file_name_makes_a_name_unless_it_holds_c1_controls(
            file in vec(any::<char>().prop_filter("refused before", |c| *c != '/' && !c.is_ascii_control()), 1..60)
                .prop_map(String::from_iter),
        ) {
            let manifest = manifest(&file);
            prop_assume!(crate::manifest::check_file_names(&manifest).is_ok());
            prop_assert_eq!(name(BUILT_IN_TEMPLATE, &manifest).is_ok(), !file.contains(char::is_control));
        }
    }
}
