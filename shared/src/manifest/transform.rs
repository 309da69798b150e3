//! Changes that Ferry makes to a manifest, and how reports name them. Spec: manifests.md §7, reports.md §3.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{INGEST_TIME, Manifest, UPLOAD_ID};
use crate::upload::UploadId;

/// Sets the two keys that every stored manifest has, whatever the sender gave for them, and answers the three
/// changes of the upload's first metadata-transform report.
pub fn add_keys(manifest: &mut Manifest, id: UploadId, now: Timestamp) -> Vec<Transform> {
    let (id, now) = (id.to_string(), now.to_string());
    manifest.insert(INGEST_TIME.to_owned(), now.clone());
    manifest.insert(UPLOAD_ID.to_owned(), id.clone());
    vec![
        Transform::new(TransformAction::Update, "ID", id.clone()),
        Transform::new(TransformAction::Append, INGEST_TIME, now),
        Transform::new(TransformAction::Append, UPLOAD_ID, id),
    ]
}

/// One change of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transform {
    /// What was done.
    pub action: TransformAction,
    /// To which key.
    pub field: String,
    /// The value that it has now.
    pub value: String,
}

/// What a [`Transform`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransformAction {
    /// The key is new.
    Append,
    /// Its value was replaced.
    Update,
    /// It is gone.
    Remove,
}

impl Transform {
    fn new(action: TransformAction, field: &str, value: String) -> Self {
        Self {
            action,
            field: field.to_owned(),
            value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_keys_replace_the_senders_and_the_rest_stays() {
        let id: UploadId = "3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90".parse().unwrap();
        let mut manifest = Manifest::from([
            ("upload_id".to_owned(), "mine".to_owned()),
            ("dex_ingest_datetime".to_owned(), "1999-01-01T00:00:00Z".to_owned()),
            ("sender_id".to_owned(), "me".to_owned()),
        ]);
        let transforms = add_keys(&mut manifest, id, "2024-03-07T05:09:08.5Z".parse().unwrap());
        assert_eq!(
            manifest,
            Manifest::from([
                ("upload_id".to_owned(), id.to_string()),
                ("dex_ingest_datetime".to_owned(), "2024-03-07T05:09:08.5Z".to_owned()),
                ("sender_id".to_owned(), "me".to_owned()),
            ])
        );
        assert_eq!(
            serde_json::to_string(&transforms).unwrap(),
            r#"[{"action":"update","field":"ID","value":"3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90"},"#.to_owned()
                + r#"{"action":"append","field":"dex_ingest_datetime","value":"2024-03-07T05:09:08.5Z"},"#
                + r#"{"action":"append","field":"upload_id","value":"3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90"}]"#
        );
    }

    #[test]
    fn times_have_as_many_digits_as_they_need() {
        for text in [
            "2024-03-07T05:09:08.123456789Z",
            "2024-03-07T05:09:08.5Z",
            "2024-03-07T05:09:08Z",
            "2024-03-07T05:09:08.00000001Z",
        ] {
            let mut manifest = Manifest::new();
            add_keys(&mut manifest, UploadId::random(), text.parse().unwrap());
            assert_eq!(manifest[INGEST_TIME], text);
        }
    }
}
