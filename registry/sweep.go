package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Bounds of sweeping.
const (
	// grace is how long what nothing refers to stays after it was used last. It is
	// longer than any push takes from its first blob to its manifest, and than a
	// build from an image's manifest to its last layer.
	grace = 24 * time.Hour
	// usedAgain is how old a file's time may be before it is set anew: not at each
	// request.
	usedAgain = time.Hour
	// sweepEvery is how often all is looked through. An image goes in some
	// sweeps: an index, its manifests, their blobs.
	sweepEvery = time.Hour
)

var (
	hexes    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	mentions = regexp.MustCompile(`sha256:[0-9a-f]{64}`)
)

// removed counts what a sweep has removed.
type removed struct {
	manifests, blobs int   // of repositories
	contents         int   // blobs and manifests that no repository has
	bytes            int64 // of contents
	uploads          int   // that nobody went on with
}

// Run removes what nothing refers to any more, at once and then every hour, until
// ctx ends; it returns nil. Contents go only after what named them is gone from the disk.
func (g *Registry) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		n, err := g.sweep(ctx)
		if err != nil && ctx.Err() == nil {
			g.log.Warn("registry: what nothing refers to stays for now", "error", err)
		}
		if n != (removed{}) {
			g.log.Info("registry: removed what nothing refers to",
				"manifests", n.manifests, "blobs", n.blobs, "contents", n.contents, "bytes", n.bytes, "uploads", n.uploads)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sweep looks through all once. A repository of which something cannot be read
// keeps all that it has.
func (g *Registry) sweep(ctx context.Context) (n removed, err error) {
	n.uploads = g.expire()
	needed := map[string]bool{}
	if g.o.Needed != nil {
		if needed, err = g.o.Needed(ctx); err != nil {
			return n, fmt.Errorf("cannot tell what is needed: %w", err)
		}
	}
	repos, err := list(g.path("repositories"))
	if err != nil {
		return n, err
	}
	var odd error
	for _, repo := range repos {
		manifests, blobs, err := g.unreferenced(repo, needed)
		if err != nil {
			odd = errors.Join(odd, fmt.Errorf("repository %s: %w", strings.ReplaceAll(repo, "%", "/"), err))
			continue
		}
		if err := g.removeFrom(ctx, repo, manifests, blobs, &n); err != nil {
			return n, errors.Join(odd, err)
		}
	}
	loose, err := g.loose(repos)
	if err == nil {
		n.contents, n.bytes, err = g.remove(ctx, loose)
		g.used.Add(-n.bytes)
	}
	return n, errors.Join(odd, err)
}

// unreferenced gives the files of a repository's manifests that neither a tag,
// nor another manifest there, nor needed has, and of its blobs that no manifest
// there has. Some may be used just now: remove looks at their times.
func (g *Registry) unreferenced(repo string, needed map[string]bool) (manifests, blobs []string, err error) {
	kept, err := g.tagged(repo)
	if err != nil {
		return nil, nil, err
	}
	allManifests, err := g.links(repo, "manifests")
	if err != nil {
		return nil, nil, err
	}
	for _, hex := range allManifests {
		body, err := g.readManifest(hex)
		if err != nil {
			return nil, nil, err
		}
		for of := range references(body) {
			kept[of] = true
		}
	}
	allBlobs, err := g.links(repo, "blobs")
	if err != nil {
		return nil, nil, err
	}
	for _, hex := range allManifests {
		if !kept[hex] && !needed["sha256:"+hex] {
			manifests = append(manifests, g.path("repositories", repo, "manifests", hex))
		}
	}
	for _, hex := range allBlobs {
		if !kept[hex] {
			blobs = append(blobs, g.path("repositories", repo, "blobs", hex))
		}
	}
	return manifests, blobs, nil
}

// tagged gives the manifests that a repository's tags name.
func (g *Registry) tagged(repo string) (map[string]bool, error) {
	dir := g.path("repositories", repo, "tags")
	all, err := list(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	kept := map[string]bool{}
	for _, tag := range all {
		b, err := os.ReadFile(filepath.Join(dir, tag))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted just now
		}
		if err != nil {
			return nil, err
		}
		if !digests.Match(b) {
			return nil, fmt.Errorf("tag %s names no manifest: delete it, or push it again", tag)
		}
		kept[strings.TrimPrefix(string(b), "sha256:")] = true
	}
	return kept, nil
}

// links gives what a repository has of a kind: 64 hex digits each.
func (g *Registry) links(repo, kind string) ([]string, error) {
	all, err := list(g.path("repositories", repo, kind))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return onlyHex(all), nil
}

func onlyHex(names []string) (found []string) {
	for _, n := range names {
		if hexes.MatchString(n) {
			found = append(found, n)
		}
	}
	return found
}

// readManifest reads one whole, and checks it.
func (g *Registry) readManifest(hex string) ([]byte, error) {
	f, err := os.Open(g.blobPath(hex))
	if err != nil {
		return nil, fmt.Errorf("a manifest cannot be read: delete it, or push it again: %w", err)
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && digestOf(body) != "sha256:"+hex {
		err = fmt.Errorf("manifest sha256:%s is not what its name says: delete it", hex)
	}
	return body, err
}

// references gives the digests, without "sha256:", that a manifest mentions
// anywhere: whatever kind it is of, it has nothing but those.
func references(body []byte) map[string]bool {
	found := map[string]bool{}
	note := func(text []byte) {
		for _, m := range mentions.FindAll(text, -1) {
			found[strings.TrimPrefix(string(m), "sha256:")] = true
		}
	}
	note(body)
	var decoded any
	if json.Unmarshal(body, &decoded) == nil {
		if plain, err := json.Marshal(decoded); err == nil {
			note(plain) // without escapes
		}
	}
	return found
}

// removeFrom removes files of a repository, durably, and the repository if
// nothing is left of it.
func (g *Registry) removeFrom(ctx context.Context, repo string, manifests, blobs []string, n *removed) error {
	m, _, err := g.remove(ctx, manifests)
	n.manifests += m
	if err != nil {
		return err
	}
	b, _, err := g.remove(ctx, blobs)
	n.blobs += b
	if err != nil {
		return err
	}
	g.gate.Lock()
	defer g.gate.Unlock()
	base := g.path("repositories", repo)
	dirs := []string{filepath.Join(base, "tags"), filepath.Join(base, "manifests"), filepath.Join(base, "blobs")}
	for _, dir := range dirs {
		if entries, err := os.ReadDir(dir); len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, dir := range append(dirs, base) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// loose gives the contents that no repository has, if all can be looked at.
func (g *Registry) loose(repos []string) (found []string, err error) {
	all, err := list(g.path("blobs"))
	if err != nil {
		return nil, err
	}
	had := map[string]bool{}
	for _, repo := range repos {
		for _, kind := range []string{"manifests", "blobs"} {
			links, err := g.links(repo, kind)
			if err != nil {
				return nil, err
			}
			for _, hex := range links {
				had[hex] = true
			}
		}
	}
	for _, hex := range onlyHex(all) {
		if !had[hex] {
			found = append(found, g.blobPath(hex))
		}
	}
	return found, nil
}

// remove removes those of some files, all of one folder, that have not been used
// for as long as grace, durably. Requests get on between any two.
func (g *Registry) remove(ctx context.Context, names []string) (n int, bytes int64, err error) {
	for _, name := range names {
		if err = context.Cause(ctx); err != nil {
			break
		}
		var size int64
		if size, err = g.removeUnused(name); err != nil {
			break
		}
		if size >= 0 {
			n, bytes = n+1, bytes+size
		}
	}
	if n > 0 {
		err = errors.Join(err, syncDir(filepath.Dir(names[0])))
	}
	return n, bytes, err
}

// removeUnused removes a file and gives its size, or -1 if it stays.
func (g *Registry) removeUnused(name string) (size int64, err error) {
	g.gate.Lock()
	defer g.gate.Unlock()
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil // a client was quicker
	}
	if err != nil || time.Since(info.ModTime()) <= grace {
		return -1, err
	}
	return info.Size(), os.Remove(name)
}

// use tells whether a file is there, and has it stay for as long as grace, about,
// though nothing refers to it. The gate is held.
func (g *Registry) use(name string) bool {
	info, err := os.Stat(name)
	if err != nil {
		return false
	}
	if age := time.Since(info.ModTime()); age > usedAgain || age < 0 {
		now := time.Now()
		if err := os.Chtimes(name, now, now); err != nil {
			g.log.Warn("registry: cannot note that a file is in use", "error", err)
		}
	}
	return true
}
