package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"thaw/catalog"
	"thaw/chunk"
	"thaw/keys"
	"thaw/manifest"
	"thaw/origin"
	"thaw/text"
)

const (
	// originPatience is how long a start waits for an origin, or for a tenant's
	// key, when what it would give is known from an earlier start.
	originPatience = 3 * time.Second
	// keyLife is how long the kernel remembers the key of a manifest's key table
	// for a start while the tenant's key cannot be reached: a day, so that a
	// worker gets over an outage, and a key taken away does not open for long.
	keyLife = 24 * time.Hour
)

// local is what an earlier start has left on this machine: manifests, sealed as
// they were read, and which image a name meant last.
//
//	STATE/manifests/<root>/<image id>
//	STATE/traces/<root>/<image id>                                     empty if there is none
//	STATE/last/<tenant>/<hash of the origin's URL>/<name, escaped>     JSON: catalog.Reference
type local struct {
	state  string
	tenant string
	origin string
}

func (g *Globals) local() local { return local{g.State, g.Tenant, g.Origin} }

func (l local) manifest(root, id string) string {
	return filepath.Join(l.state, "manifests", url.PathEscape(root), id)
}

// last is where the reference of a name is kept, for one origin.
func (l local) last(name string) string {
	sum := sha256.Sum256([]byte(l.origin))
	return filepath.Join(l.state, "last", l.tenant, hex.EncodeToString(sum[:8]), url.PathEscape(name))
}

// keep writes a file, whole or not at all. What cannot be kept is not needed
// now.
func keep(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// startable is an image with all that a start needs.
type startable struct {
	name    string // as it was asked for
	id      manifest.ID
	root    string
	sealed  []byte // the manifest
	dataKey []byte // of its key table
	trace   []byte // sealed, or none
	*manifest.Manifest
}

// find finds IMAGE and opens its manifest: from the origin, or, where that
// cannot be reached, as an earlier start left it.
func (g *Globals) find(ctx context.Context, name string) (*startable, error) {
	l := g.local()
	known, kerr := l.recall(name)
	limit := g.OriginDeadline
	if kerr == nil {
		limit = min(limit, originPatience)
	}
	asked, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s, err := g.findIn(asked, l, name)
	if err == nil || kerr != nil || ctx.Err() != nil || !unreachable(err) {
		return s, err
	}
	g.logger().Warn(fmt.Sprintf("%s: the origin or its key cannot be reached: starting what was started before", name), "image", known.Image, "cause", text.Line(err.Error()))
	return g.openLocal(ctx, l, name, known)
}

// unreachable reports whether an error says nothing of the image itself.
func unreachable(err error) bool {
	for _, answer := range []error{
		origin.ErrNotFound, origin.ErrCorrupt, origin.ErrRefused, manifest.ErrCorrupt, chunk.ErrCorrupt,
		keys.ErrRefused, catalog.ErrAmbiguous, catalog.ErrNotFound, fs.ErrNotExist, fs.ErrPermission,
	} {
		if errors.Is(err, answer) {
			return false
		}
	}
	return true
}

// findIn asks the origin what the name means.
func (g *Globals) findIn(ctx context.Context, l local, name string) (*startable, error) {
	store, err := g.open(ctx, false)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	ref, err := store.names.Resolve(ctx, name)
	if errors.Is(err, catalog.ErrNotFound) {
		if _, kerr := l.recall(name); kerr == nil { // an origin that has nothing at all cannot have removed it
			err = cmp.Or(store.Absent(), err)
		}
	}
	if err != nil {
		return nil, err
	}
	waitTrace := func() []byte { return nil }
	if g.wantTrace {
		waitTrace = g.askTrace(ctx, store, ref)
		defer waitTrace() // before the store is closed
	}
	data, err := os.ReadFile(l.manifest(ref.Root, ref.Image))
	if err != nil {
		if data, err = store.Manifests(ref.Root, g.Tenant).Get(ctx, ref.Image); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
	}
	s, err := g.unseal(ctx, name, ref, data, store.key)
	if err != nil {
		return nil, err
	}
	s.trace = waitTrace()
	l.remember(g, name, ref, data)
	return s, nil
}

// openLocal opens what an earlier start left.
func (g *Globals) openLocal(ctx context.Context, l local, name string, ref catalog.Reference) (*startable, error) {
	data, err := os.ReadFile(l.manifest(ref.Root, ref.Image))
	if err != nil {
		return nil, fmt.Errorf("image %s: its manifest is not on this machine: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, originPatience)
	defer cancel()
	var by manifest.Wrapper
	if key, err := keys.OpenExisting(ctx, g.Key, keyDrivers()...); err == nil {
		defer key.Close()
		by = key
	}
	s, err := g.unseal(ctx, name, ref, data, by)
	if err == nil && g.wantTrace {
		s.trace = readTrace(l.trace(ref.Root, ref.Image))
	}
	return s, err
}

// unseal opens a manifest with the tenant's key, or with what the kernel
// remembers while that key cannot be reached (nil).
func (g *Globals) unseal(ctx context.Context, name string, ref catalog.Reference, data []byte, key manifest.Wrapper) (*startable, error) {
	fail := func(err error) (*startable, error) { return nil, fmt.Errorf("image %s: %w", name, err) }
	sealed, err := parseManifest(bytes.Clone(data), ref.Image)
	if err != nil {
		return fail(err)
	}
	var dataKey []byte
	if key != nil {
		dataKey, err = sealed.DataKey(ctx, key)
	} else {
		err = errors.New("the tenant's key cannot be reached")
	}
	switch {
	case err == nil:
		rememberKey(sealed.KeyURL(), ref.Image, dataKey)
	case unreachable(err):
		var rerr error
		if dataKey, rerr = recallKey(ref.Image); rerr != nil {
			return fail(err)
		}
	default:
		return fail(err)
	}
	m, err := sealed.OpenWith(dataKey)
	if err == nil {
		err = g.checkImage(m)
	}
	if err != nil {
		return fail(err)
	}
	return &startable{name: name, id: sealed.ID(), root: ref.Root, sealed: data, dataKey: dataKey, Manifest: m}, nil
}

// remember keeps what a start without the origin needs.
func (l local) remember(g *Globals, name string, ref catalog.Reference, data []byte) {
	record, err := json.Marshal(ref)
	if known, rerr := os.ReadFile(l.last(name)); err == nil && (rerr != nil || string(known) != string(record)) {
		err = errors.Join(keep(l.manifest(ref.Root, ref.Image), data), keep(l.last(name), record))
	}
	if err != nil {
		g.logger().Warn("not kept for a start without the origin", "image", name, "cause", text.Line(err.Error()))
	}
}

// recall gives what a name meant last.
func (l local) recall(name string) (ref catalog.Reference, err error) {
	data, err := os.ReadFile(l.last(name))
	if err == nil {
		err = json.Unmarshal(data, &ref)
	}
	return ref, err
}

// The kernel's keyring of root (keyrings(7)) holds, for keyLife and no reboot,
// the keys of key tables whose tenants' keys are elsewhere. They are in no file.
const keyName = "thaw:"

func rememberKey(url, id string, dataKey []byte) {
	if strings.HasPrefix(url, "file:") {
		return // as near as the keyring
	}
	n, err := unix.AddKey("user", keyName+id, dataKey, unix.KEY_SPEC_USER_KEYRING)
	if err == nil {
		_, _ = unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, n, int(keyLife.Seconds()), 0, 0)
	}
}

func recallKey(id string) ([]byte, error) {
	n, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", keyName+id, 0)
	if err != nil {
		return nil, err
	}
	key := make([]byte, 32)
	size, err := unix.KeyctlBuffer(unix.KEYCTL_READ, n, key, 0)
	if err != nil || size != len(key) {
		return nil, errors.New("no key")
	}
	return key, nil
}
