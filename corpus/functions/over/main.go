// Over makes a function's image: a parent's layers, and one more of a folder's files.
//
//	over [-parent LAYOUT] -config FILE FOLDER TO
//
// LAYOUT and TO are OCI layout folders of one image each; TO must not exist and appears only on success. The parent's layers are hard links.
// Files belong to root, have the modes that they have in FOLDER, and the time SOURCE_DATE_EPOCH: the same files give the same digests. The
// JSON object in FILE replaces members of the image's config: Entrypoint, Cmd, WorkingDir, Env.
package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func main() {
	if err := run(os.Args[1:], os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		fmt.Fprintln(os.Stderr, "over:", err)
		os.Exit(1)
	}
}

func run(args []string, epoch string) error {
	flags := flag.NewFlagSet("over", flag.ContinueOnError)
	parent := flags.String("parent", "", "layout of the image below; none by default")
	config := flags.String("config", "", "JSON file with members of the config")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 || *config == "" {
		return fmt.Errorf("want -config FILE, a folder and a layout")
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH must be seconds since 1970, is %q", epoch)
	}
	base, err := below(*parent)
	if err != nil {
		return err
	}
	img, err := above(base, flags.Arg(0), *config, time.Unix(seconds, 0).UTC())
	if err != nil {
		return err
	}
	return write(img, *parent, flags.Arg(1))
}

// below reads the parent, or makes an empty image.
func below(parent string) (v1.Image, error) {
	if parent == "" {
		img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
		return mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}})
	}
	index, err := layout.ImageIndexFromPath(parent)
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(m.Manifests) != 1 {
		return nil, fmt.Errorf("%s: want one image, found %d", parent, len(m.Manifests))
	}
	return index.Image(m.Manifests[0].Digest)
}

// above adds the layer and changes the config.
func above(base v1.Image, folder, config string, at time.Time) (v1.Image, error) {
	packed, err := pack(folder, at)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", folder, err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil }
	layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	added := mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: at}, CreatedBy: "over"}}
	img, err := mutate.Append(base, added)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.Created = v1.Time{Time: at}
	text, err := os.ReadFile(config)
	if err == nil {
		err = json.Unmarshal(text, &c.Config)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", config, err)
	}
	return mutate.ConfigFile(img, c)
}

// pack makes a tar of a folder.
func pack(folder string, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == folder {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, filepath.Clean(folder)+"/")
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: int64(info.Mode().Perm()), ModTime: at, Size: info.Size()}
		if e.IsDir() {
			h.Name, h.Typeflag, h.Size = name+"/", tar.TypeDir, 0
			return w.WriteHeader(h)
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is neither file nor folder", name)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	return b.Bytes(), err
}

// write makes the layout. What is there under a digest already is not written again.
func write(img v1.Image, parent, to string) error {
	temp := to + ".tmp"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	blobs := filepath.Join("blobs", "sha256")
	if err := os.MkdirAll(filepath.Join(temp, blobs), 0o755); err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers[:len(layers)-1] {
		d, err := l.Digest()
		if err == nil {
			err = os.Link(filepath.Join(parent, blobs, d.Hex), filepath.Join(temp, blobs, d.Hex))
		}
		if err != nil && !os.IsExist(err) {
			return err
		}
	}
	path, err := layout.Write(temp, empty.Index)
	if err == nil {
		err = path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"}))
	}
	if err != nil {
		return err
	}
	return os.Rename(temp, to)
}
