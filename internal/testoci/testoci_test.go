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

func TestGoFunction(t *testing.T) {
	img, err := oci.Open(t.Context(), testoci.GoFunction(t, filepath.Join(t.TempDir(), "img")), oci.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	r, err := img.OpenLayer(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err != nil {
			t.Fatalf("no bootstrap: %v", err)
		}
		if h.Name == "var/task/bootstrap" && h.Mode == 0o755 && h.Size > 1<<20 {
			return
		}
	}
}
