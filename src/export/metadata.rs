//! What a model's file says about itself beside the graph.

use onnx_protobuf::{ModelProto, StringStringEntryProto};

/// The names of the classes in the order of the logits, as a JSON list.
const CLASSES: &str = "bisam.classes";

/// The names of the classes that a file carries, in the order of its logits.
pub fn read_classes(proto: &ModelProto) -> Option<Vec<String>> {
    let entry = proto.metadata_props.iter().find(|p| p.key == CLASSES)?;
    serde_json::from_str(&entry.value).ok().filter(|names: &Vec<String>| !names.is_empty())
}

/// Puts the names of the classes into a file, in the place of older ones; no names take these away.
pub fn write_classes(proto: &mut ModelProto, names: &[String]) {
    proto.metadata_props.retain(|p| p.key != CLASSES);
    if !names.is_empty() {
        let value = serde_json::Value::from(names).to_string();
        proto.metadata_props.push(StringStringEntryProto { key: CLASSES.into(), value, ..Default::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_names_replace_older_ones() {
        let mut proto = ModelProto::default();
        let other = StringStringEntryProto { key: "author".into(), value: "me".into(), ..Default::default() };
        proto.metadata_props.push(other);
        assert_eq!(read_classes(&proto), None);
        for names in [["cat", "dog"], ["ant", "say \"bee\""]].map(|n| n.map(str::to_owned)) {
            write_classes(&mut proto, &names);
            assert_eq!(read_classes(&proto).as_deref(), Some(&names[..]));
            assert_eq!(proto.metadata_props.len(), 2);
        }
        write_classes(&mut proto, &[]);
        assert_eq!(proto.metadata_props.len(), 1);
    }
}
