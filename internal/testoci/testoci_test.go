package testoci_test

import (
	"archive/tar"
	"context"
	"io"
	"path/filepath"
	"testing"

	"thaw/internal/testoci"
	"thaw/oci"
)

func TestLayoutIsReadable(t *testing.T) {
	body := testoci.Noise(1, 5000)
	src := testoci.Layout(t, filepath.Join(t.TempDir(), "img"), []string{"A=b"},
		testoci.Tar(t, testoci.Dir("d"), testoci.File("d/f", body)))
	img, err := oci.Open(context.Background(), src, oci.Options{Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	r, err := img.OpenLayer(context.Background(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tr := tar.NewReader(r)
	for _, want := range []string{"d", "d/f"} {
		h, err := tr.Next()
		if err != nil || h.Name != want {
			t.Fatalf("entry %v, %v; want %s", h, err, want)
		}
	}
	got, err := io.ReadAll(tr)
	if err != nil || string(got) != string(body) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestNoiseDependsOnItsSeedAlone(t *testing.T) {
	a, b, c := testoci.Noise(1, 64), testoci.Noise(1, 64), testoci.Noise(2, 64)
	if string(a) != string(b) || string(a) == string(c) {
		t.Fatal("noise is not a function of the seed")
	}
}
