// Package origin is the durable store: a folder, or a bucket of an object
// store, with the same keys in both.
//
//	roots/<root>/chunks/<2 hex>/<name>           sealed chunks, by the start of the name
//	roots/<root>/manifests/<tenant>/<image id>
//	roots/<root>/recipes/<tenant>/<name>
//	roots/<root>/traces/<tenant>/<image id>/<seq>
//	roots/<root>/state/<seq>                     the root's state, a JSON record
//	names/<tenant>/<name>/<seq>                  references, package catalog's
//	platforms/<word>/<seq>                       empty: a platform uses this origin
//	.tmp/.tmp-<random>                           folder only: unfinished writes
//
// An object under one of these keys is whole: it appears in one step, or not at
// all, and of several processes that put one key one wins. What changes is a
// numbered record (<seq>: 20 decimal digits, from 1): the highest counts.
// Nothing is overwritten but chunks found damaged and envelopes of manifests.
// After a put or removal returned nil, it survives a crash and a power cut.
//
// The origin checks lengths and nothing else: chunks are verified by whoever
// opens them, manifests by package manifest. It keeps no secret, and no error
// of it holds one.
package origin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"thaw/chunk"
)

var (
	// ErrNotFound says that there is no such object.
	ErrNotFound = errors.New("not in the origin")
	// ErrCorrupt says that an object is there and cannot be what its key says.
	ErrCorrupt = errors.New("corrupt in the origin")
	// ErrConflict says that others kept taking the next number of a record.
	ErrConflict = errors.New("too many writers at once")
	// ErrRefused says that credentials are missing or do not allow this, or
	// that a folder's permissions do not.
	ErrRefused = errors.New("refused by the origin")
	// ErrFull says that a folder's disk or quota is used up.
	ErrFull = errors.New("no space left in the origin")
	// ErrAbsent says that a folder holds no origin: nothing was put into it yet,
	// or its disk or share is not mounted. It is not ErrNotFound.
	ErrAbsent = errors.New("no origin in this folder: is what it is on mounted?")
)

// defaultParallel keeps a local disk and a bucket busy: a folder on ext4 gains
// little past 32 writers (BenchmarkPut), a bucket at 30 ms a request gives 2,000
// requests a second. 64 chunks in flight are 32 MiB of the callers'.
const defaultParallel = 64

// Origin is one durable store. It is safe for concurrent use, also by several
// processes on one store.
type Origin struct {
	bucket Bucket
	where  string        // for errors; no secret in it
	slots  chan struct{} // one for each operation under way
}

// Option changes what Open does.
type Option func(*settings)

type settings struct {
	parallel int
	drivers  map[string]func(ctx context.Context, u *url.URL, parallel int) (Bucket, error) // by scheme
}

// Parallel bounds the operations under way at once, 64 by default; more wait.
// Listings do not count, so that one may be read while its objects are. It
// panics if n is not positive.
func Parallel(n int) Option {
	if n <= 0 {
		panic("origin: Parallel of no operations")
	}
	return func(s *settings) { s.parallel = n }
}

// Open opens the store at a URL:
//
//	file:///dir                       a folder, made by the first put
//	s3://bucket[/prefix]?region=…     credentials as the AWS SDK finds them
//	    &endpoint=http://host:port    another server of the S3 protocol
//	    &use_path_style=false         default: true with an endpoint
//	gs://bucket[/prefix]              application default credentials
//	azblob://container[/prefix]       AZURE_STORAGE_ACCOUNT and _KEY or _SAS_TOKEN
//	mem://                            in memory, for tests: empty each time
//
// s3, gs and azblob need a driver (WithDriver; package origin/cloud has one):
// they are kept out of programs that read a folder, which start in a quarter of
// the time. Other query parameters are those of gocloud.dev/blob. Open does not
// reach out:
// a bucket that is missing or refuses is found at first use. A folder's
// leftovers of killed processes are removed. Requests are retried as the
// service's SDK does, a bounded number of times; ctx ends them early. A URL
// that carries credentials is refused, since they would end in shell
// histories. The caller closes the Origin.
func Open(ctx context.Context, rawURL string, options ...Option) (*Origin, error) {
	u, err := parseURL(rawURL)
	if err != nil {
		return nil, err
	}
	s := settings{parallel: defaultParallel, drivers: map[string]func(context.Context, *url.URL, int) (Bucket, error){}}
	for _, option := range options {
		option(&s)
	}
	o := &Origin{where: u.Scheme + "://" + u.Host + u.Path, slots: make(chan struct{}, s.parallel)}
	switch driver := s.drivers[u.Scheme]; {
	case driver != nil:
		if o.bucket, err = driver(ctx, u, s.parallel); err != nil {
			return nil, fmt.Errorf("origin: open %s://%s: %w", u.Scheme, u.Host, err)
		}
	case u.Scheme == "file":
		o.where = u.Path
		f, err := openFolder(u)
		if err != nil {
			return nil, err
		}
		o.bucket = Bucket{f, f}
	case u.Scheme == "mem":
		m := &memory{objects: map[string]object{}}
		o.bucket = Bucket{m, m}
	default:
		return nil, fmt.Errorf("origin: a URL of %q is not supported: use file, s3, gs or azblob", u.Scheme)
	}
	return o, nil
}

func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" {
		return nil, errors.New("origin: the URL does not parse: use file:///dir, s3://bucket, gs://bucket or azblob://container")
	}
	inner, err := url.Parse(u.Query().Get("endpoint"))
	if u.User != nil || err != nil || inner.User != nil {
		return nil, fmt.Errorf("origin: the URL of %s://%s holds credentials or a bad endpoint: give credentials by the environment", u.Scheme, u.Host)
	}
	return u, nil
}

// Close frees connections. Nothing may be under way or follow.
func (o *Origin) Close() error {
	if c, ok := o.bucket.Writer.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Free tells how many bytes a folder's disk has left for this user. A bucket
// has no such number: ok is false.
func (o *Origin) Free() (bytes int64, ok bool, err error) {
	f, ok := o.bucket.Writer.(*folder)
	if !ok {
		return 0, false, nil
	}
	bytes, err = f.free()
	return bytes, err == nil, err
}

// do runs one operation in a slot, and says in its error what failed where.
func (o *Origin) do(ctx context.Context, verb, key string, f func() error) error {
	select {
	case o.slots <- struct{}{}:
		defer func() { <-o.slots }()
	case <-ctx.Done():
		return o.fail(verb, key, ctx.Err())
	}
	if err := ctx.Err(); err != nil {
		return o.fail(verb, key, err)
	}
	err := f()
	if errors.Is(err, ErrNotFound) || errors.Is(err, chunk.ErrNotFound) {
		err = cmp.Or(o.Absent(), err) // where nothing is, nothing can be said to be missing
	}
	return o.fail(verb, key, err)
}

// absenter is a Reader that may be there without its objects.
type absenter interface {
	// absent gives ErrAbsent if no origin was made here.
	absent() error
}

// Absent gives ErrAbsent for a folder that holds no origin, not even its first
// root (Active), and nil for one that does. Of a bucket it gives nil: one that
// is away does not answer. Listings of an absent origin are empty.
func (o *Origin) Absent() error {
	if r, ok := o.bucket.Reader.(absenter); ok {
		return r.absent()
	}
	return nil
}

func (o *Origin) fail(verb, key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("origin: %s %s in %s: %w", verb, key, o.where, err)
}

const (
	lower   = "abcdefghijklmnopqrstuvwxyz0123456789"
	letters = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// rule says which names are good: up to max bytes, each of first or more, and
// the first one of first. These were regular expressions once, and took a
// millisecond of every start.
type rule struct {
	first, more string
	max         int
}

var (
	tenantRule = rule{lower, "._-", 64}
	rootRule   = rule{lower, "-", 32}
	// objectRule holds names to what every store takes as it is and a folder
	// cannot mistake: no slash, no leading dot, at most 255 bytes.
	objectRule = rule{letters, "._:@!=+-", 255}
)

func (r rule) match(name string) bool {
	return name != "" && len(name) <= r.max && strings.Contains(r.first, name[:1]) && strings.Trim(name, r.first+r.more) == ""
}

// String gives the rule in words.
func (r rule) String() string {
	first := "a-z, 0-9"
	if r.first == letters {
		first = "A-Z, " + first
	}
	return fmt.Sprintf("1 to %d of %s and %s, starting with a letter or digit", r.max, first, r.more)
}

// CheckTenant refuses what cannot be a tenant's name: 1 to 64 of a-z, 0-9, dot,
// underscore and hyphen, starting with a letter or digit.
func CheckTenant(tenant string) error {
	return check(tenantRule, "tenant", tenant)
}

func check(r rule, what, name string) error {
	if !r.match(name) {
		return fmt.Errorf("origin: %.80q cannot be the name of a %s (%s)", name, what, r)
	}
	return nil
}

// checkKey holds each part of a key to objectRule.
func checkKey(key string) error {
	for part := range strings.SplitSeq(key, "/") {
		if err := check(objectRule, "part of a key", part); err != nil {
			return err
		}
	}
	return nil
}

// folderPath gives the folder a file URL names.
func folderPath(u *url.URL) (string, error) {
	if u.Host != "" || !strings.HasPrefix(u.Path, "/") || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("origin: %s is not the URL of a folder: write file:///dir, with three slashes and no query", u.Redacted())
	}
	if st, err := os.Stat(u.Path); err == nil && !st.IsDir() {
		return "", fmt.Errorf("origin: %s is not a folder", u.Path)
	}
	return u.Path, nil
}
