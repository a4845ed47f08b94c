package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"
)

func tarLayer(b []byte, opens *int) Tar {
	return Tar{DiffID: digestOf(b), Size: int64(len(b)), Open: func() (io.ReadCloser, error) {
		*opens++
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

func TestCompose(t *testing.T) {
	f := newFixture(t, gzipLayer(t, tarOf(t, file{name: "below", body: noise(1, 5000)})))
	top, opens := tarOf(t, file{name: "above", body: noise(2, 5000)}), 0
	for name, base := range map[string]*Image{"over another": open(t, "oci:"+f.layoutOf(t, f.manifestDesc), Options{}), "alone": nil} {
		img, err := Compose(base, func(c map[string]any) { c["config"] = map[string]any{"WorkingDir": "/x"} }, tarLayer(top, &opens))
		if err != nil {
			t.Fatal(err)
		}
		n := len(img.Layers())
		if got, err := readLayer(img, n-1, nil); err != nil || !bytes.Equal(got, top) {
			t.Errorf("%s: top layer of %d bytes, %v", name, len(got), err)
		}
		if n == 2 {
			if got, err := readLayer(img, 0, nil); err != nil || !bytes.Equal(got, f.layers[0].tar) {
				t.Errorf("%s: base layer of %d bytes, %v", name, len(got), err)
			}
		}
		var c struct {
			Config struct{ WorkingDir string }
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		if err := json.Unmarshal(img.Config(), &c); err != nil || c.Config.WorkingDir != "/x" || len(c.RootFS.DiffIDs) != n || img.ConfigDigest() != digestOf(img.Config()) {
			t.Errorf("%s: config %s, %v", name, img.Config(), err)
		}
		if img.Digest() != "" {
			t.Errorf("%s: digest %s", name, img.Digest())
		}
	}
	if opens != 2 {
		t.Errorf("opened %d times", opens)
	}
}

func TestComposeRefuses(t *testing.T) {
	opens := 0
	layer := tarLayer(tarOf(t, file{name: "x"}), &opens)
	for what, top := range map[string][]Tar{
		"no digest":       {{DiffID: "sha256:xyz", Open: layer.Open}},
		"too many layers": make([]Tar, maxLayers+1),
	} {
		if _, err := Compose(nil, func(map[string]any) {}, top...); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	layer.Size++
	img, err := Compose(nil, func(map[string]any) {}, layer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readLayer(img, 0, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a tar of another length: %v", err)
	}
}
