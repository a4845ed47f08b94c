// Package cloud is package origin's driver for the buckets of object stores: S3
// and what speaks its protocol, Google Cloud Storage, Azure Blob Storage. It is
// a package of its own because their SDKs take some 15 ms of every start of a
// program that they are linked into.
package cloud

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"cloud.google.com/go/storage"
	"gocloud.dev/blob"
	"gocloud.dev/blob/azureblob"
	"gocloud.dev/blob/gcsblob"
	"gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"
	"gocloud.dev/gcp"

	"thaw/origin"
)

const (
	// partSize bounds the bytes an upload buffers; a longer object goes in
	// parts. Only recipes of 100,000 files are longer.
	partSize = 8 << 20
	// minBuffer is the smallest buffer that Cloud Storage takes.
	minBuffer = 256 << 10

	contentType = "application/octet-stream"
)

// bucket keeps objects in a service's bucket.
type bucket struct {
	b *blob.Bucket
	// put sends one object. The error of a taken key is told by isTaken.
	put func(ctx context.Context, key string, data []byte, ifAbsent bool) error
	// get opens one object, of so many bytes.
	get   func(ctx context.Context, key string) (io.ReadCloser, int64, error)
	reads *reads
	stall time.Duration // stallTimeout
	// forget, if set, closes the connections that wait for requests: the next
	// request looks for the service anew.
	forget func()
}

// Open opens the bucket of an s3, gs or azblob URL, whose parts are told at
// origin.Open, for so many operations at once. It does not reach out. Its
// Writer is an io.Closer. It is to be given to origin.WithDriver.
func Open(ctx context.Context, u *url.URL, parallel int) (origin.Bucket, error) {
	c := &bucket{reads: newReads(), stall: stallTimeout}
	c.put, c.get = c.upload, c.download
	prefix := strings.Trim(u.Path, "/")
	if prefix != "" {
		prefix += "/"
	}
	var err error
	switch u.Scheme {
	case s3blob.Scheme:
		var s *s3Objects
		c.b, s, err = openS3(ctx, u, parallel)
		if err == nil {
			s.prefix = prefix
			c.put, c.get, c.reads.passing, c.forget = s.put, s.get, passes, s.transport.CloseIdleConnections
		}
	case gcsblob.Scheme, azureblob.Scheme:
		c.b, err = openByMux(ctx, *u)
	default:
		return origin.Bucket{}, errors.New("no such service: use s3, gs or azblob")
	}
	if err != nil {
		return origin.Bucket{}, explain(ctx, err)
	}
	if prefix != "" {
		c.b = blob.PrefixedBucket(c.b, prefix)
	}
	return origin.Bucket{Reader: c, Writer: c}, nil
}

// openByMux opens a bucket of Cloud Storage or Azure as gocloud does, after a
// look for credentials: Cloud Storage's opener would print that there are none
// and go on.
func openByMux(ctx context.Context, u url.URL) (*blob.Bucket, error) {
	google := u.Scheme == gcsblob.Scheme && !u.Query().Has("anonymous") && os.Getenv("STORAGE_EMULATOR_HOST") == ""
	if google {
		if _, err := gcp.DefaultCredentials(ctx); err != nil {
			return nil, fmt.Errorf("%w: set GOOGLE_APPLICATION_CREDENTIALS to a key file, or log in with gcloud: %w", origin.ErrRefused, err)
		}
	}
	u.Path = ""
	b, err := blob.OpenBucket(ctx, u.String())
	if err != nil && u.Scheme == azureblob.Scheme {
		return nil, fmt.Errorf("%w: set AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN: %w", origin.ErrRefused, err)
	}
	var client *storage.Client
	if err == nil && b.As(&client) {
		client.SetRetry(storage.WithMaxAttempts(attempts)) // it would never give up
	}
	return b, err
}

// Close implements io.Closer.
func (c *bucket) Close() error { return c.b.Close() }

// Get implements origin.Reader.
func (c *bucket) Get(ctx context.Context, key string, limit int64) (data []byte, err error) {
	stall := c.stall
	err = again(ctx, readAttempts, c.reads.worthwhile, func() error {
		data, err = c.read(ctx, key, limit, stall)
		stall *= 2
		if lost(ctx, err) && c.forget != nil {
			c.forget()
		}
		return err
	})
	if err == nil {
		c.reads.succeeded()
	}
	return data, err
}

// lost finds the failure of a read that had no answer in its time: the
// connection may lead to a host that is gone.
func lost(ctx context.Context, err error) bool {
	return err != nil && httpStatus(err) == 0 && !errors.Is(ctx.Err(), context.Canceled)
}

func tooLong(limit int64) error {
	return fmt.Errorf("%w: longer than %d bytes", origin.ErrCorrupt, limit)
}

func (c *bucket) read(outer context.Context, key string, limit int64, stall time.Duration) ([]byte, error) {
	ctx, touch, cancel := stallable(outer, stall)
	defer cancel()
	body, size, err := c.get(ctx, key)
	if err != nil {
		return nil, stalled(ctx, err)
	}
	defer body.Close()
	if size > limit {
		return nil, tooLong(limit)
	}
	touch()
	// Grown as bytes come, so that a size that is a lie costs nothing.
	var buf bytes.Buffer
	buf.Grow(int(min(size, partSize)) + bytes.MinRead)
	n, err := buf.ReadFrom(io.LimitReader(touching{body, touch}, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errBroken, stalled(ctx, err))
	case n > limit:
		return nil, tooLong(limit)
	case n != size:
		return nil, fmt.Errorf("%w: %d of %d bytes", errBroken, n, size)
	}
	return buf.Bytes(), nil
}

// download is the get of all services but S3.
func (c *bucket) download(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	r, err := c.b.NewReader(ctx, key, nil)
	if err != nil {
		return nil, 0, err
	}
	return r, r.Size(), nil
}

// Stat implements origin.Reader.
func (c *bucket) Stat(ctx context.Context, key string) (origin.Entry, error) {
	a, err := c.b.Attributes(ctx, key)
	if err != nil {
		return origin.Entry{}, explain(ctx, err)
	}
	return origin.Entry{Key: key, Size: a.Size, ModTime: a.ModTime}, nil
}

// List implements origin.Reader.
func (c *bucket) List(ctx context.Context, prefix string, shallow bool) iter.Seq2[origin.Entry, error] {
	opts := &blob.ListOptions{Prefix: prefix}
	if shallow {
		opts.Delimiter = "/"
	}
	return func(yield func(origin.Entry, error) bool) {
		for it := c.b.List(opts); ; {
			o, err := it.Next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(origin.Entry{}, explain(ctx, err))
				return
			}
			if !yield(origin.Entry{Key: o.Key, Size: o.Size, ModTime: o.ModTime, Dir: o.IsDir}, nil) {
				return
			}
		}
	}
}

// isConflict finds S3's answer to conditional puts of one key at once: the
// outcome is open, and the put is to be sent again.
func isConflict(err error) bool { return httpStatus(err) == http.StatusConflict }

// isTaken finds the answer to a conditional put of a key that has an object.
func isTaken(err error) bool {
	return gcerrors.Code(err) == gcerrors.FailedPrecondition || httpStatus(err) == http.StatusPreconditionFailed
}

// isReset finds a connection that broke while the body was sent. Servers that
// see at once that a key is taken say so and hang up, and the break can reach
// us before their answer.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}

// Create implements origin.Writer.
func (c *bucket) Create(ctx context.Context, key string, data []byte) (added bool, err error) {
	err = again(ctx, attempts, isConflict, func() error {
		err := c.put(ctx, key, data, true)
		if added = err == nil; isTaken(err) {
			return nil
		}
		if isReset(err) {
			if _, serr := c.b.Attributes(ctx, key); serr == nil {
				return nil // taken, by another or by the attempt that broke
			}
		}
		return err
	})
	return added, err
}

// Replace implements origin.Writer.
func (c *bucket) Replace(ctx context.Context, key string, data []byte) error {
	return again(ctx, attempts, isConflict, func() error { return c.put(ctx, key, data, false) })
}

// upload is the put of all services but S3.
func (c *bucket) upload(ctx context.Context, key string, data []byte, ifAbsent bool) error {
	return c.b.Upload(ctx, key, bytes.NewReader(data), &blob.WriterOptions{
		ContentType:    contentType,
		IfNotExist:     ifAbsent,
		BufferSize:     max(min(len(data), partSize), minBuffer),
		MaxConcurrency: 2, // parts at once: what is in flight stays small
	})
}

// Remove implements origin.Writer.
func (c *bucket) Remove(ctx context.Context, key string) error {
	return explain(ctx, c.b.Delete(ctx, key))
}
