package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"thaw/convert"
	"thaw/flatten"
	"thaw/functions"
	"thaw/oci"
)

// Images turns jobs into conversions: its Build is what Options.Convert wants.
type Images struct {
	// Convert converts for an account: with its tenant's converter.
	Convert func(ctx context.Context, account string, o convert.Options) (*convert.Result, error)
	// Zip opens the package of a version by its key. The caller closes it.
	Zip func(ctx context.Context, account, key string) (io.ReadCloser, error)
	// Login gives an account's credentials for a registry; without a user there
	// are none. nil: there never are.
	Login func(ctx context.Context, account, registry string) (user, password string, err error)
	// PlainHTTP are the registries, host:port, that are spoken to without TLS: the
	// one inside, under the names that clients know it by.
	PlainHTTP []string
	// Local tells the accounts that may deploy from this machine's folders and
	// docker daemon; nil: none.
	Local    func(account string) bool
	Runtimes Runtimes
	MaxImage int64  // bytes of an image's layers together, uncompressed; 0: DefaultMaxImage
	Scratch  string // folder for packages while they are converted; "": the system's
	Prime    bool   // put what is converted into the zone too

	// DockerSocket is that of the docker daemon; "": where it usually is.
	DockerSocket string
}

// DefaultMaxImage is Lambda's own quota, in bytes.
const DefaultMaxImage = 10 << 30

// architectures are Lambda's names for Go's.
var architectures = map[string]string{"amd64": "x86_64", "arm64": "arm64"}

// Build makes a job's device.
func (m *Images) Build(ctx context.Context, j *Job) (functions.Result, error) {
	here := architectures[runtime.GOARCH]
	if a := cmp.Or(j.Version.Architecture, "x86_64"); a != here {
		return functions.Result{}, Refuse(InvalidImage, "The function is for %s and this region's workers are %s.", a, here)
	}
	dir, remove, err := scratch(m.Scratch)
	if err != nil {
		return functions.Result{}, err
	}
	defer remove()
	p := j.Version.Package
	switch {
	case p.Zip != "":
		return m.buildZip(ctx, j, dir)
	case p.ImageURI == "":
		return functions.Result{}, Refuse(InvalidImage, "The function has neither an image nor a package.")
	case p.Image != "": // another configuration of what is there
		return functions.Result{Image: p.Image, Root: p.Root, Reference: p.Reference}, nil
	}
	return m.buildImage(ctx, j, dir)
}

// buildImage converts an image. What its tag means is noted before its layers
// are read.
func (m *Images) buildImage(ctx context.Context, j *Job, dir string) (functions.Result, error) {
	given := j.Version.Package.ImageURI
	j.Report("Looking at the image.")
	img, err := m.open(ctx, j, cmp.Or(j.Version.Package.ResolvedURI, given), dir)
	if err != nil {
		return functions.Result{}, m.explain(err)
	}
	defer img.Close()
	digest := cmp.Or(img.Digest(), img.ConfigDigest())
	if j.Version.Package.ResolvedURI == "" {
		if err := j.Resolve(ctx, withDigest(given, digest)); err != nil {
			return functions.Result{}, err
		}
	}
	return m.convert(ctx, j, img, digest)
}

// convert converts what is open, and names it after the function and the build.
func (m *Images) convert(ctx context.Context, j *Job, img *oci.Image, digest string) (functions.Result, error) {
	code := strings.TrimPrefix(digest, "sha256:")
	size := int64(0)
	for _, l := range img.Layers() {
		size += max(l.Size, 0)
	}
	name := j.Reference(j.Build)
	res, err := m.Convert(ctx, j.Account, convert.Options{
		Opened: img, Name: name, MaxBytes: m.maxImage(), Prime: m.Prime, Progress: &progress{report: j.Report},
	})
	if err != nil {
		return functions.Result{}, m.explain(err)
	}
	r := functions.Result{Image: res.Image, Root: res.Root, Reference: name, ResolvedURI: j.Version.Package.ResolvedURI}
	if j.Version.Package.Zip == "" { // the package's own were known when it came
		r.CodeSha256, r.CodeSize = code, size
	}
	return r, nil
}

func (m *Images) maxImage() int64 { return cmp.Or(m.MaxImage, DefaultMaxImage) }

// open opens an image's source for a job.
func (m *Images) open(ctx context.Context, j *Job, uri, dir string) (*oci.Image, error) {
	opt := oci.Options{Platform: "linux/" + runtime.GOARCH}
	kind, rest, _ := strings.Cut(uri, ":")
	if !slices.Contains([]string{"oci", "oci-archive", "docker-archive", "docker-daemon"}, kind) {
		opt.PlainHTTP = m.plainHTTP(uri)
		opt.Login = func(ctx context.Context, registry string) (string, string, error) {
			if m.Login == nil {
				return "", "", nil
			}
			return m.Login(ctx, j.Account, registry)
		}
		return oci.Open(ctx, uri, opt)
	}
	if m.Local == nil || !m.Local(j.Account) {
		return nil, Refuse(AccessDenied, "Images of this machine (%s:) are not for account %s: push it to a registry.", kind, j.Account)
	}
	// A folder's tag may have moved since, but not within what is open now.
	rest, _, _ = strings.Cut(rest, "@sha256:")
	if kind == "docker-daemon" {
		file := filepath.Join(dir, "image.tar")
		if err := m.saveDocker(ctx, rest, file); err != nil {
			return nil, err
		}
		return oci.Open(ctx, "docker-archive:"+file, opt)
	}
	if !filepath.IsAbs(rest) {
		return nil, Refuse(InvalidImage, "The path in %s has to be absolute: the builder has a working folder of its own.", show(uri))
	}
	return oci.Open(ctx, kind+":"+rest, opt)
}

// plainHTTP tells whether a reference is of one of those registries. The machine
// itself has several names.
func (m *Images) plainHTTP(uri string) bool {
	host, _, _ := strings.Cut(strings.TrimPrefix(uri, "docker://"), "/")
	return slices.ContainsFunc(m.PlainHTTP, func(known string) bool {
		return known == host || loopbackPort(known) != "" && loopbackPort(known) == loopbackPort(host)
	})
}

// loopbackPort is the port of an address of this machine, or empty.
func loopbackPort(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host != "localhost" && !net.ParseIP(host).IsLoopback() {
		return ""
	}
	return port
}

// withDigest puts a digest in place of a reference's tag. A folder keeps its
// tag: it has no other way to find an image.
func withDigest(uri, digest string) string {
	uri, _, _ = strings.Cut(uri, "@")
	kind, _, _ := strings.Cut(uri, ":")
	if slices.Contains([]string{"oci", "oci-archive", "docker-archive", "docker-daemon"}, kind) {
		return uri + "@" + digest
	}
	if colon := strings.LastIndex(uri, ":"); colon > strings.LastIndex(uri, "/") {
		uri = uri[:colon]
	}
	return uri + "@" + digest
}

// explain gives what a user can do something about its code. The rest may pass.
func (m *Images) explain(err error) error {
	var no *Refusal
	switch {
	case errors.As(err, &no):
		return no
	case errors.Is(err, oci.ErrUnauthorized):
		return Refuse(AccessDenied, "%s", sentence(err))
	case errors.Is(err, oci.ErrPlatform), errors.Is(err, oci.ErrUnsupported), errors.Is(err, oci.ErrCorrupt), errors.Is(err, flatten.ErrLayer):
		return Refuse(InvalidImage, "%s", sentence(err))
	case errors.Is(err, convert.ErrTooLarge):
		return Refuse(InvalidImage, "The image's layers have more than %d bytes uncompressed, which is the most that this region takes (--max-image).", m.maxImage())
	case errors.Is(err, oci.ErrNotFound):
		return Refuse(ImageDeleted, "%s", sentence(err))
	}
	return err
}

// buildZip converts a package over the base of its runtime.
func (m *Images) buildZip(ctx context.Context, j *Job, dir string) (functions.Result, error) {
	rt := j.Version.Runtime
	if err := m.Runtimes.check(rt); err != nil {
		return functions.Result{}, err
	}
	j.Report("Unpacking the package.")
	layer, p, err := m.unpack(ctx, j, dir)
	if err != nil {
		return functions.Result{}, err
	}
	if provided(rt) && !p.names["bootstrap"] {
		return functions.Result{}, Refuse(InvalidImage, "The package has no file bootstrap at its top, which the runtime %s starts.", rt)
	}
	img, err := m.overBase(ctx, j, layer)
	if err != nil {
		return functions.Result{}, err
	}
	defer img.Close()
	return m.convert(ctx, j, img, img.ConfigDigest())
}

// unpack fetches a package and makes it a layer in dir.
func (m *Images) unpack(ctx context.Context, j *Job, dir string) (oci.Tar, *packed, error) {
	fail := func(err error) (oci.Tar, *packed, error) { return oci.Tar{}, nil, err }
	rc, err := m.Zip(ctx, j.Account, j.Version.Package.Zip)
	if err != nil {
		return fail(fmt.Errorf("open the package: %w", err))
	}
	defer rc.Close()
	in, err := os.Create(filepath.Join(dir, "package.zip"))
	if err != nil {
		return fail(err)
	}
	defer in.Close()
	size, err := io.Copy(in, io.LimitReader(rc, MaxZipped+1))
	if err != nil {
		return fail(fmt.Errorf("read the package: %w", err))
	}
	name := filepath.Join(dir, "layer.tar")
	out, err := os.Create(name)
	if err != nil {
		return fail(err)
	}
	defer out.Close()
	p, err := packZip(ctx, in, size, out)
	if err != nil {
		return fail(err)
	}
	return oci.Tar{DiffID: p.diffID, Size: p.size, Open: func() (io.ReadCloser, error) { return os.Open(name) }}, p, nil
}

// overBase puts a package's layer over the image of its runtime, or over the
// small base.
func (m *Images) overBase(ctx context.Context, j *Job, layer oci.Tar) (*oci.Image, error) {
	change := taskConfig(j.Version.Runtime, j.Version.Handler, runtime.GOARCH)
	source := m.Runtimes[j.Version.Runtime]
	if source == "" {
		base, err := smallBase()
		if err != nil {
			return nil, err
		}
		return oci.Compose(nil, change, base, layer)
	}
	base, err := oci.Open(ctx, source, oci.Options{Platform: "linux/" + runtime.GOARCH, PlainHTTP: m.plainHTTP(source)})
	if err != nil {
		err = fmt.Errorf("the base image of runtime %s (runtimes.toml): %w", j.Version.Runtime, err)
		if onDisk(source) && errors.Is(err, oci.ErrNotFound) { // and is not soon
			err = Refuse(InternalError, "%s", sentence(err))
		}
		return nil, err
	}
	img, err := oci.Compose(base, change, layer)
	if err != nil {
		base.Close()
	}
	return img, err
}
