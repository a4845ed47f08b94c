package builder

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"thaw/oci"
)

// smallBase is the layer below packages of provided runtimes that the operator
// has mapped to no image: folders, and the few files that C libraries and Go
// look for. It has no programs: a bootstrap brings all it needs, as a static Go
// program does. It is the same everywhere, so that all functions share it.
func smallBase() (oci.Tar, error) {
	folders := map[string]int64{
		"var": 0o755, "var/task": 0o755, "var/runtime": 0o755, "opt": 0o755, "opt/extensions": 0o755, "tmp": 0o1777,
		"dev": 0o755, "proc": 0o555, "sys": 0o555, "etc": 0o755, "run": 0o755, "root": 0o700, "home": 0o755,
	}
	files := map[string]string{
		"etc/passwd":        "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n",
		"etc/group":         "root:x:0:\nnogroup:x:65534:\n",
		"etc/nsswitch.conf": "hosts: files dns\n",
		"etc/hosts":         "", // and this: the skeleton's lie over them
		"etc/resolv.conf":   "",
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(folders)) {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: folders[name], ModTime: earliest()}
		if err := w.WriteHeader(h); err != nil {
			return oci.Tar{}, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: earliest()}
		if err := w.WriteHeader(h); err != nil {
			return oci.Tar{}, err
		}
		if _, err := io.WriteString(w, files[name]); err != nil {
			return oci.Tar{}, err
		}
	}
	if err := w.Close(); err != nil {
		return oci.Tar{}, err
	}
	sum := sha256.Sum256(b.Bytes())
	return oci.Tar{
		DiffID: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(b.Len()),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
	}, nil
}

// Runtimes are the images that packages lie over, by the runtime's name. Sources
// are as oci.Open takes them. They are the operator's, and trusted.
type Runtimes map[string]string

// runtimeNames are what the API takes for a runtime's name.
var runtimeNames = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$`)

// maxRuntimes bounds the file of runtimes, in bytes.
const maxRuntimes = 1 << 20

// LoadRuntimes reads runtimes.toml:
//
//	[runtimes]
//	"python3.13" = "oci:/srv/images/python"
//
// A file that is absent maps none.
func LoadRuntimes(file string) (Runtimes, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var t struct {
		Runtimes Runtimes `toml:"runtimes"`
	}
	if err := toml.NewDecoder(io.LimitReader(f, maxRuntimes)).DisallowUnknownFields().Decode(&t); err != nil {
		return nil, fmt.Errorf("%s: %s: want [runtimes] and lines NAME = \"IMAGE\"", file, strings.ReplaceAll(err.Error(), "\n", " "))
	}
	for name, source := range t.Runtimes {
		if !runtimeNames.MatchString(name) || source == "" {
			return nil, fmt.Errorf("%s: runtime %.80q has the image %.200q: want a name of letters, digits, dots, hyphens and underscores, at most 64, and an image", file, name, source)
		}
	}
	return t.Runtimes, nil
}

// Check fails if a base image that is to be on this machine, in a folder or an
// archive, is not there, or cannot be used.
func (r Runtimes) Check(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if !onDisk(r[name]) {
			continue
		}
		img, err := oci.Open(ctx, r[name], oci.Options{Platform: "linux/" + runtime.GOARCH})
		if err != nil {
			return fmt.Errorf("the base image of runtime %s (runtimes.toml): %w", name, err)
		}
		img.Close()
	}
	return nil
}

// onDisk tells a source that is a folder or an archive.
func onDisk(source string) bool {
	kind, _, _ := strings.Cut(source, ":")
	return slices.Contains([]string{"oci", "oci-archive", "docker-archive"}, kind)
}

// check refuses a runtime that nothing was mapped to.
func (r Runtimes) check(runtime string) error {
	if r[runtime] != "" || provided(runtime) {
		return nil
	}
	known := "none is"
	if len(r) > 0 {
		known = "there are " + strings.Join(slices.Sorted(maps.Keys(r)), ", ")
	}
	return Refuse(InvalidImage, "The runtime %s is not mapped to a base image (runtimes.toml; %s): use provided.al2023, or an image.", show(runtime), known)
}

// provided tells the runtimes whose packages bring their own program.
func provided(runtime string) bool {
	return runtime == "provided" || strings.HasPrefix(runtime, "provided.")
}

// taskConfig changes a base image's config into a package's: as on Lambda, a
// package of a provided runtime starts its own bootstrap, others what the base
// image starts, with the handler as the command and in _HANDLER.
func taskConfig(runtime, handler, architecture string) func(map[string]any) {
	return func(config map[string]any) {
		config["os"], config["architecture"] = "linux", architecture
		config["created"] = earliest().UTC().Format(time.RFC3339)
		c, _ := config["config"].(map[string]any)
		if c == nil {
			c = map[string]any{}
		}
		c["WorkingDir"] = "/var/task"
		c["Env"] = withVariables(c["Env"])
		if provided(runtime) {
			c["Entrypoint"] = []string{"/var/task/bootstrap"}
			delete(c, "Cmd")
		} else if handler != "" {
			c["Cmd"] = []string{handler}
		}
		config["config"] = c
	}
}

// withVariables adds what Lambda's own bases set, where the image does not.
func withVariables(have any) []string {
	var env []string
	list, _ := have.([]any)
	for _, v := range list {
		env = append(env, fmt.Sprint(v))
	}
	for _, v := range []string{
		"LAMBDA_TASK_ROOT=/var/task", "LAMBDA_RUNTIME_DIR=/var/runtime", "TZ=:UTC", "LANG=en_US.UTF-8",
		"PATH=/usr/local/bin:/usr/bin:/bin:/opt/bin",
		"LD_LIBRARY_PATH=/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
	} {
		name, _, _ := strings.Cut(v, "=")
		if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			env = append(env, v)
		}
	}
	return env
}
