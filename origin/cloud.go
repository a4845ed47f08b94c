package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/azureblob"
	"gocloud.dev/blob/gcsblob"
	"gocloud.dev/blob/memblob"
	"gocloud.dev/gcerrors"
)

const (
	// attempts bounds what is tried again here and not by a service's SDK: a
	// body that breaks off, and S3's 409 for puts at once.
	attempts = 4
	// backoff is the wait before the second attempt; it doubles.
	backoff = 100 * time.Millisecond
	// partSize bounds the bytes an upload buffers; a longer object goes in
	// parts. 8 MiB is the default of S3's and above its minimum of 5.
	partSize = 8 << 20
	// minBuffer is the smallest buffer that Cloud Storage takes.
	minBuffer = 256 << 10
)

// cloud keeps objects in a bucket, or in memory.
type cloud struct {
	b *blob.Bucket
}

// openCloud opens the bucket of a URL for so many operations at once.
func openCloud(ctx context.Context, u *url.URL, parallel int) (bucket, error) {
	var b *blob.Bucket
	var err error
	switch u.Scheme {
	case "mem":
		b = memblob.OpenBucket(nil)
	case "s3":
		b, err = openS3(ctx, u, parallel)
	case gcsblob.Scheme, azureblob.Scheme:
		plain := *u
		plain.Path = ""
		b, err = blob.OpenBucket(ctx, plain.String())
	default:
		return nil, fmt.Errorf("origin: a URL of %q is not supported: use file, s3, gs or azblob", u.Scheme)
	}
	if err != nil {
		return nil, fmt.Errorf("origin: open %s://%s: %w", u.Scheme, u.Host, explainCloud(ctx, err))
	}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		b = blob.PrefixedBucket(b, prefix+"/")
	}
	return &cloud{b}, nil
}

// Close is io.Closer's.
func (c *cloud) Close() error { return c.b.Close() }

// again runs f until it gives something other than a transient error.
func again(ctx context.Context, transient func(error) bool, f func() error) error {
	wait := backoff
	for try := 1; ; try++ {
		err := f()
		if err == nil || try == attempts || ctx.Err() != nil || !transient(err) {
			return explainCloud(ctx, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		wait *= 2
	}
}

// errBroken marks a body that ended too early: the SDKs have given the reply
// away by then and do not try again.
var errBroken = errors.New("the object's bytes broke off")

func isBroken(err error) bool { return errors.Is(err, errBroken) }

func (c *cloud) get(ctx context.Context, key string, limit int64) (data []byte, err error) {
	err = again(ctx, isBroken, func() error {
		data, err = c.read(ctx, key, limit)
		return err
	})
	return data, err
}

func (c *cloud) read(ctx context.Context, key string, limit int64) ([]byte, error) {
	r, err := c.b.NewReader(ctx, key, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.Size() > limit {
		return nil, errTooLong
	}
	// Grown as bytes come, so that a size that is a lie costs nothing.
	var buf bytes.Buffer
	buf.Grow(int(min(r.Size(), partSize)) + bytes.MinRead)
	n, err := buf.ReadFrom(io.LimitReader(r, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	case n > limit:
		return nil, errTooLong
	case n != r.Size():
		return nil, fmt.Errorf("%w: %d of %d bytes", errBroken, n, r.Size())
	}
	return buf.Bytes(), nil
}

func (c *cloud) stat(ctx context.Context, key string) (entry, error) {
	a, err := c.b.Attributes(ctx, key)
	if err != nil {
		return entry{}, explainCloud(ctx, err)
	}
	return entry{key: key, size: a.Size, modTime: a.ModTime}, nil
}

func (c *cloud) list(ctx context.Context, prefix string, shallow bool) iter.Seq2[entry, error] {
	opts := &blob.ListOptions{Prefix: prefix}
	if shallow {
		opts.Delimiter = "/"
	}
	return func(yield func(entry, error) bool) {
		for it := c.b.List(opts); ; {
			o, err := it.Next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(entry{}, explainCloud(ctx, err))
				return
			}
			if !yield(entry{o.Key, o.Size, o.ModTime, o.IsDir}, nil) {
				return
			}
		}
	}
}

// isConflict finds S3's answer to conditional puts of one key at once: the
// outcome is open, and the put is to be sent again.
func isConflict(err error) bool { return httpStatus(err) == http.StatusConflict }

func (c *cloud) create(ctx context.Context, key string, data []byte) (bool, error) {
	exists := false
	err := again(ctx, isConflict, func() error {
		err := c.write(ctx, key, data, true)
		exists = gcerrors.Code(err) == gcerrors.FailedPrecondition
		if exists {
			return nil
		}
		return err
	})
	return err == nil && !exists, err
}

func (c *cloud) replace(ctx context.Context, key string, data []byte) error {
	return again(ctx, isConflict, func() error { return c.write(ctx, key, data, false) })
}

func (c *cloud) write(ctx context.Context, key string, data []byte, ifAbsent bool) error {
	return c.b.Upload(ctx, key, bytes.NewReader(data), &blob.WriterOptions{
		ContentType:    "application/octet-stream",
		IfNotExist:     ifAbsent,
		BufferSize:     max(min(len(data), partSize), minBuffer),
		MaxConcurrency: 2, // parts at once: what is in flight stays small
	})
}

func (c *cloud) remove(ctx context.Context, key string) error {
	return explainCloud(ctx, c.b.Delete(ctx, key))
}
