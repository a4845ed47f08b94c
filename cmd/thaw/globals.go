package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"thaw/catalog"
	"thaw/keys"
	"thaw/manifest"
	"thaw/origin"
	"thaw/trace"
)

// Globals are the flags that every verb has.
type Globals struct {
	State          string        `help:"Folder of keys and, by default, the origin (root: /var/lib/thaw, others: $$XDG_STATE_HOME/thaw)." env:"THAW_STATE" placeholder:"DIR" group:"globals"`
	Origin         string        `help:"Where images are stored: file:///DIR, s3://BUCKET?endpoint=…, gs://BUCKET, azblob://CONTAINER (file://STATE/origin)." env:"THAW_ORIGIN" placeholder:"URL" group:"globals"`
	Tenant         string        `help:"Whose images these are." default:"default" env:"THAW_TENANT" placeholder:"T" group:"globals"`
	Key            string        `help:"The tenant's key: file:///FILE, awskms://…, gcpkms://…, azurekeyvault://…, hashivault://… (file://STATE/keys/TENANT, made when first used)." env:"THAW_KEY" placeholder:"URL" group:"globals"`
	Secret         string        `help:"File with the deployment's secret, mixed into every chunk's key. Without it chunks can be confirmed by whoever can guess them and list the origin." env:"THAW_SECRET" placeholder:"FILE" type:"path" group:"globals"`
	Cache          string        `help:"Folder of this machine's cache of chunks (STATE/cache)." env:"THAW_CACHE" placeholder:"DIR" group:"globals"`
	CacheSize      byteSize      `help:"Most bytes that the cache holds." default:"10GiB" env:"THAW_CACHE_SIZE" group:"globals"`
	Zone           string        `help:"Zone cache: HOST:PORT,… | file:PATH | dns:NAME." env:"THAW_ZONE" placeholder:"LIST" group:"globals"`
	OriginDeadline time.Duration `help:"How long a read waits for an origin that does not answer, before it fails." default:"60s" env:"THAW_ORIGIN_DEADLINE" group:"globals"`
	OriginRequests int           `help:"Most chunks that a cache fetches from the origin at a time; more wait, the oldest start's first." default:"64" env:"THAW_ORIGIN_REQUESTS" placeholder:"N" group:"globals"`
	LogFormat      string        `help:"Form of warnings: text or json." enum:"text,json" default:"text" env:"THAW_LOG_FORMAT" group:"globals"`
	Config         configFlag    `help:"TOML file of flags: those of all verbs first, then a table for each verb's own, such as [worker]. The command line and the environment go before it." type:"path" placeholder:"FILE" group:"globals"`

	zoneFlags `embed:""`

	stdout, stderr io.Writer
	program
	wantTrace bool // a start wants the image's trace too
	dated     bool // warnings say when they were written
}

// complete fills in what depends on other flags.
func (g *Globals) complete() error {
	if g.State == "" {
		dir, err := defaultState()
		if err != nil {
			return err
		}
		g.State = dir
	}
	dir, err := filepath.Abs(g.State)
	if err != nil {
		return err
	}
	g.State = dir
	if g.Origin == "" {
		g.Origin = fileURL(dir, "origin")
	}
	if g.Key == "" {
		g.Key = fileURL(dir, "keys", g.Tenant)
	}
	if g.Cache == "" {
		g.Cache = filepath.Join(dir, "cache")
	}
	if g.Cache, err = filepath.Abs(g.Cache); err != nil {
		return err
	}
	if g.OriginDeadline < time.Millisecond {
		return errors.New("--origin-deadline: want a duration such as 60s")
	}
	if g.OriginRequests < 1 || g.OriginRequests > maxOriginRequests {
		return fmt.Errorf("--origin-requests: want 1 to %d", maxOriginRequests)
	}
	if err := g.completeZone(); err != nil {
		return err
	}
	return origin.CheckTenant(g.Tenant)
}

// maxOriginRequests is more than any bucket is quicker with: each may take 512
// KiB.
const maxOriginRequests = 4096

// lastCall is for right before another program takes the place of this one. It
// fails if a signal has come that the other would not hear of.
func (g *Globals) lastCall(ctx context.Context) error {
	if g.signals != nil {
		g.signals.settle()
	}
	return ctx.Err()
}

// fileURL gives the URL of a path, whatever its characters.
func fileURL(parts ...string) string {
	return (&url.URL{Scheme: "file", Path: filepath.Join(parts...)}).String()
}

func defaultState() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/thaw", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "thaw"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", errors.New("no --state, no XDG_STATE_HOME and no HOME: where is the state to be kept?")
	}
	return filepath.Join(home, ".local", "state", "thaw"), nil
}

// secret reads the deployment's secret.
func (g *Globals) secret() ([]byte, error) {
	if g.Secret == "" {
		return nil, nil
	}
	f, err := os.OpenFile(g.Secret, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO would block
	if err != nil {
		return nil, fmt.Errorf("deployment secret: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("deployment secret: %s is not a file", g.Secret)
	}
	b, err := io.ReadAll(io.LimitReader(f, 4097))
	if err != nil {
		return nil, fmt.Errorf("deployment secret: %w", err)
	}
	if len(b) < 16 || len(b) > 4096 {
		return nil, fmt.Errorf("deployment secret: %s has %d bytes; want 16 to 4096, such as: head -c 32 /dev/urandom > %s", g.Secret, len(b), g.Secret)
	}
	return b, nil
}

// store is the origin, opened, with the tenant's key and references.
type store struct {
	*origin.Origin
	key   *keys.Tenant
	names *catalog.Catalog
}

// open opens the origin and the tenant's key. A key file is made only by a verb
// that creates, and only for a tenant that has nothing yet: one that went
// missing must not be replaced silently. The caller closes the store.
func (g *Globals) open(ctx context.Context, create bool) (*store, error) {
	o, err := origin.Open(ctx, g.Origin, originDrivers()...)
	if err != nil {
		return nil, err
	}
	key, err := keys.OpenExisting(ctx, g.Key, keyDrivers()...)
	if errors.Is(err, fs.ErrNotExist) {
		err = g.checkFresh(ctx, o, err)
		if err == nil && create {
			key, err = keys.Open(ctx, g.Key, keyDrivers()...)
		}
	}
	if err != nil {
		return nil, errors.Join(err, o.Close())
	}
	if key == nil {
		return &store{o, nil, catalog.New(o, g.Tenant, noKey{})}, nil
	}
	return &store{o, key, catalog.New(o, g.Tenant, key)}, nil
}

// checkFresh gives missing, the reason why there is no key, if the tenant has
// images, or records of names, that it would open.
func (g *Globals) checkFresh(ctx context.Context, o *origin.Origin, missing error) error {
	for _, err := range o.Children(ctx, "names/"+g.Tenant) {
		if err != nil {
			return err
		}
		return fmt.Errorf("tenant %s has named images, and its key is not here: %w", g.Tenant, missing)
	}
	roots, err := o.Roots(ctx)
	if err != nil {
		return err
	}
	for _, root := range roots {
		for _, err := range o.Manifests(root.Name, g.Tenant).List(ctx, "") {
			if err != nil {
				return err
			}
			return fmt.Errorf("tenant %s has images, and its key is not here: %w", g.Tenant, missing)
		}
	}
	return nil
}

// noKey is the key of a tenant that has nothing to open.
type noKey struct{}

func (noKey) Wrap(context.Context, []byte) ([]byte, error)   { return nil, keys.ErrRefused }
func (noKey) Unwrap(context.Context, []byte) ([]byte, error) { return nil, keys.ErrRefused }

// Close closes origin and key.
func (s *store) Close() error {
	if s.key == nil {
		return s.Origin.Close()
	}
	return errors.Join(s.key.Close(), s.Origin.Close())
}

// image is an image that was asked for.
type image struct {
	catalog.Reference
	*manifest.Manifest
	id       manifest.ID
	root     origin.Root
	traceKey trace.Key
}

// load finds IMAGE and opens its manifest.
func (g *Globals) load(ctx context.Context, s *store, name string) (*image, error) {
	ref, err := s.names.Resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*image, error) { return nil, fmt.Errorf("image %s: %w", name, err) }
	id, err := manifest.ParseID(ref.Image)
	if err != nil {
		return fail(err)
	}
	data, err := s.Manifests(ref.Root, g.Tenant).Get(ctx, ref.Image)
	if err != nil {
		return fail(err)
	}
	sealed, err := parseManifest(data, ref.Image)
	if err != nil {
		return fail(err)
	}
	dataKey, err := sealed.DataKey(ctx, s.key)
	if err != nil {
		return fail(err)
	}
	traceKey := trace.NewKey(dataKey, id)
	m, err := sealed.OpenWith(dataKey)
	clear(dataKey)
	if err == nil {
		err = g.checkImage(m)
	}
	if err != nil {
		return fail(err)
	}
	roots, err := s.Roots(ctx)
	if err != nil {
		return fail(err)
	}
	i := slices.IndexFunc(roots, func(r origin.Root) bool { return r.Name == ref.Root })
	if i < 0 {
		return fail(fmt.Errorf("%w: root %s", origin.ErrNotFound, ref.Root))
	}
	return &image{ref, m, id, roots[i], traceKey}, nil
}

// parseManifest reads the manifest that an id names. Opening it decrypts data.
func parseManifest(data []byte, id string) (*manifest.Sealed, error) {
	sealed, err := manifest.Parse(data)
	if err == nil && sealed.ID().String() != id {
		err = fmt.Errorf("%w: its manifest has the id %s", manifest.ErrCorrupt, sealed.ID())
	}
	return sealed, err
}

// checkImage refuses an opened manifest that is not of an image of the tenant.
func (g *Globals) checkImage(m *manifest.Manifest) error {
	if m.Kind != manifest.Image || m.Tenant != g.Tenant {
		return fmt.Errorf("%w: the manifest is of another tenant or no image's", manifest.ErrCorrupt)
	}
	return nil
}

// byteSize is a number of bytes on the command line: "512KiB", "2MiB", "4096".
type byteSize int64

// UnmarshalText reads a size.
func (b *byteSize) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	for i, unit := range []string{"", "KiB", "MiB", "GiB", "TiB"} {
		digits, ok := strings.CutSuffix(s, unit)
		if !ok || digits == "" || strings.Trim(digits, "0123456789") != "" {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n > 1<<(62-10*i) {
			break
		}
		*b = byteSize(n << (10 * i))
		return nil
	}
	return fmt.Errorf("%q is not a size: want a whole number, alone or with KiB, MiB, GiB or TiB behind it", s)
}

// MarshalText writes a size for help.
func (b byteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// String gives a size as it would be typed.
func (b byteSize) String() string {
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if n := int64(b) >> (10 * (4 - i)); n > 0 && n<<(10*(4-i)) == int64(b) {
			return strconv.FormatInt(n, 10) + unit
		}
	}
	return strconv.FormatInt(int64(b), 10)
}
