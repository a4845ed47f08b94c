package frontend

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"thaw/functions"
	"thaw/lambdaapi"
)

const (
	// fetchTime bounds the reading of a package from S3 until it is kept: SDKs wait
	// for a minute.
	fetchTime = 50 * time.Second
	// fetches is how many packages are read from S3 at a time: each takes up to
	// mostFetched bytes of disk.
	fetches = 2
	// scratchPrefix starts the names of scratch files.
	scratchPrefix = "thaw-package-"
)

// ObjectError is what an S3 service answers instead of an object.
type ObjectError struct{ Code, Message string }

// Error gives code and message.
func (e *ObjectError) Error() string { return e.Code + ": " + e.Message }

// packObject packs what S3 has. On its way it is in a scratch file: never whole
// in memory.
func (c *control) packObject(ctx context.Context, id functions.ID, v *functions.Version, o object) error {
	if c.objects == nil {
		return refuse("S3Bucket and S3Key are not supported here: the operator of this region has named no S3 service (--s3). Please provide the package as ZipFile.")
	}
	if o.bucket == "" || o.key == "" {
		return refuse("Please provide both S3Bucket and S3Key.")
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	select {
	case c.fetching <- struct{}{}:
		defer func() { <-c.fetching }()
	case <-ctx.Done():
		return lambdaapi.TooManyRequestsException.Errorf("Too many packages are read from S3 at the moment. Please try again.")
	}
	file, err := scratch(c.scratch)
	if err != nil {
		return fmt.Errorf("make a scratch file for a package from S3: %w", err)
	}
	defer file.Close()
	z, err := c.fetch(ctx, o, file)
	if err == nil {
		err = c.packZip(ctx, id, v, z)
	}
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return refuse("The package could not be read from S3 and kept within %.0f seconds. Please try again, or provide a smaller one.", fetchTime.Seconds())
	}
	return err
}

// fetch reads a package from S3 into a file.
func (c *control) fetch(ctx context.Context, o object, to interface {
	io.Writer
	io.ReaderAt
}) (z zipPackage, err error) {
	body, size, err := c.objects(ctx, o.bucket, o.key, o.version)
	var said *ObjectError
	if errors.As(err, &said) {
		return z, refuse("Error occurred while GetObject. S3 Error Code: %.100s. S3 Error Message: %.500s", said.Code, said.Message)
	}
	if err != nil {
		return z, fmt.Errorf("read a package from S3: %w", err)
	}
	defer body.Close()
	if size > mostFetched {
		return z, unzipsTooLarge()
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(to, sum), io.LimitReader(body, mostFetched+1))
	if err != nil {
		return z, fmt.Errorf("read a package from S3: %w", err)
	}
	if n > mostFetched {
		return z, unzipsTooLarge()
	}
	return zipPackage{io.NewSectionReader(to, 0, n), [sha256.Size]byte(sum.Sum(nil))}, nil
}

// scratch makes a file in a folder, or in the system's for what is temporary.
// Nothing of it stays once it is closed, or the process killed: it has a name for
// a moment only. So whoever finds one may remove it.
func scratch(dir string) (*os.File, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	left, _ := filepath.Glob(filepath.Join(dir, scratchPrefix+"*")) // a folder that cannot be read fails below
	for _, name := range left {
		_ = os.Remove(name) // empty: it was left in that moment
	}
	f, err := os.CreateTemp(dir, scratchPrefix)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
