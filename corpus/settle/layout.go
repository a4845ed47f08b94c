package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A settler copies layouts; no time in a copy is later than latest.
type settler struct {
	latest time.Time
	pack   packing
	cache  string // folder; "" for none
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	Manifests     []descriptor `json:"manifests"`
}

// layout copies the one image of the layout from into the new layout to.
func (s settler) layout(from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return fmt.Errorf("%s exists", to)
	}
	temp := to + ".tmp"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	blobs := filepath.Join(temp, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	if err := s.image(from, temp); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return os.Rename(temp, to)
}

func (s settler) image(from, to string) error {
	var i index
	if err := readJSON(filepath.Join(from, "index.json"), &i); err != nil {
		return err
	}
	if len(i.Manifests) != 1 {
		return fmt.Errorf("want one image in index.json, found %d", len(i.Manifests))
	}
	var m manifest
	if err := readJSON(blobPath(from, i.Manifests[0].Digest), &m); err != nil {
		return err
	}
	var diffs []string
	for n := range m.Layers {
		d, diff, err := s.layer(blobPath(from, m.Layers[n].Digest), filepath.Join(to, "blobs", "sha256"))
		if err != nil {
			return err
		}
		m.Layers[n], diffs = d, append(diffs, diff)
	}
	var config map[string]any
	if err := readJSON(blobPath(from, m.Config.Digest), &config); err != nil {
		return err
	}
	s.settleConfig(config, diffs)
	var err error
	if m.Config, err = writeBlob(to, m.Config.MediaType, config); err != nil {
		return err
	}
	d, err := writeBlob(to, m.MediaType, m)
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	if err := writeJSON(filepath.Join(to, "index.json"), index{SchemaVersion: 2, Manifests: []descriptor{d}}); err != nil {
		return err
	}
	return writeJSON(filepath.Join(to, "oci-layout"), map[string]string{"imageLayoutVersion": "1.0.0"})
}

// settleConfig puts the settled times and diff ids into an image's config. Comments in the history go: they name the builder's own records.
func (s settler) settleConfig(config map[string]any, diffs []string) {
	s.settleCreated(config)
	if history, ok := config["history"].([]any); ok {
		for _, h := range history {
			if h, ok := h.(map[string]any); ok {
				s.settleCreated(h)
				delete(h, "comment")
			}
		}
	}
	config["rootfs"] = map[string]any{"type": "layers", "diff_ids": diffs}
}

func (s settler) settleCreated(record map[string]any) {
	text, _ := record["created"].(string)
	if created, err := time.Parse(time.RFC3339Nano, text); err != nil || created.After(s.latest) {
		record["created"] = s.latest.Format(time.RFC3339)
	}
}

func blobPath(layout, digest string) string {
	return filepath.Join(layout, "blobs", "sha256", filepath.Base(strings.TrimPrefix(digest, "sha256:")))
}

func readJSON(name string, v any) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func writeJSON(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o644)
}

// writeBlob adds v as a JSON blob to a layout.
func writeBlob(layout, mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	return descriptor{MediaType: mediaType, Digest: digest, Size: int64(len(data))}, os.WriteFile(blobPath(layout, digest), data, 0o644)
}
