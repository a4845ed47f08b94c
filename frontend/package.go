package frontend

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"thaw/functions"
	"thaw/lambdaapi"
)

// Limits of packages in bytes.
const (
	mostZipped   = 52428800 // of one in a request
	mostUnzipped = 262144000
	mostFiles    = 100000 // of a zip: its directory is read into memory, some 300 bytes each
	// fileHeaders is what a zip has of each file besides its contents: two headers
	// and a trailer of 100 bytes together, the name twice, and what tools add, such
	// as times and owners. Names of 150 characters fit.
	fileHeaders = 512
	// mostFetched is of one in S3, which Lambda bounds only by what is in it: files
	// that do not compress are as long zipped as unzipped, and their headers come
	// on top.
	mostFetched = mostUnzipped + mostFiles*fileHeaders
	// mostDirectory is of the directory at the end of a zip: half of the headers,
	// which are read into memory, too.
	mostDirectory = mostFiles * fileHeaders / 2
	mostURI       = 2048 // more than any name of an image that registries take
)

// digests end image URIs that no tag can move.
var digests = regexp.MustCompile(`@sha256:([0-9a-f]{64})$`)

// source is what a request says of a function's code.
type source struct {
	kind     string // Image, Zip, or empty for what the rest says
	image    string
	zip      []byte
	object   object
	kms      bool // is encrypted with a key of its own
	updating bool
}

// object is a package in S3.
type object struct{ bucket, key, version string }

func sourceOf(q *lambdaapi.CreateFunctionRequest) source {
	code := q.Code
	return source{
		kind: value(q.PackageType), image: value(code.ImageUri), zip: code.ZipFile,
		object: object{value(code.S3Bucket), value(code.S3Key), value(code.S3ObjectVersion)}, kms: value(code.SourceKMSKeyArn) != "",
	}
}

func sourceOfUpdate(q *lambdaapi.UpdateFunctionCodeRequest, v *functions.Version) source {
	return source{
		kind: packageType(v), image: value(q.ImageUri), zip: q.ZipFile, updating: true,
		object: object{value(q.S3Bucket), value(q.S3Key), value(q.S3ObjectVersion)}, kms: value(q.SourceKMSKeyArn) != "",
	}
}

// pack checks a request's code and puts it into the version.
func (c *control) pack(ctx context.Context, id functions.ID, v *functions.Version, s source) error {
	if s.kind == "" {
		s.kind = packageZip
	}
	doing := "creating"
	if s.updating {
		doing = "updating"
	}
	switch {
	case s.kind == packageImage && s.image == "":
		return refuse("Please provide ImageUri when %s a function with packageType Image.", doing)
	case s.kind == packageImage && (s.zip != nil || s.object != object{}):
		return refuse("Please don't provide ZipFile or S3 objects when %s a function with packageType Image.", doing)
	case s.kind == packageZip && s.image != "":
		return refuse("Please don't provide ImageUri when %s a function with packageType Zip.", doing)
	case s.kms:
		return refuse("SourceKMSKeyArn is not supported here. Please leave it out.")
	case s.kind == packageImage:
		return packImage(v, s.image)
	case s.zip != nil && s.object != object{}:
		return refuse("Please do not provide other FunctionCode parameters when providing a ZipFile.")
	case s.object == object{} && len(s.zip) == 0:
		return refuse("Please provide a source for function code.")
	}
	if err := c.checkRuntime(&v.Config); err != nil {
		return err
	}
	if c.packages == nil {
		return refuse("Zip packages are not supported here. Please provide an image.")
	}
	if s.zip == nil {
		return c.packObject(ctx, id, v, s.object)
	}
	if len(s.zip) > mostZipped {
		return lambdaapi.RequestTooLargeException.Errorf("Zipped size must be smaller than %d bytes", mostZipped)
	}
	return c.packZip(ctx, id, v, zipPackage{io.NewSectionReader(bytes.NewReader(s.zip), 0, int64(len(s.zip))), sha256.Sum256(s.zip)})
}

// packImage takes an image's name. Who builds it asks its registry.
func packImage(v *functions.Version, uri string) error {
	if len(uri) > mostURI || strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return refuse("ImageUri must have at most %d characters, none of them a space.", mostURI)
	}
	if v.Runtime != "" || v.Handler != "" {
		return refuse("Please don't provide Handler or Runtime or Layer when the intended function PackageType is Image.")
	}
	v.Package = functions.Package{ImageURI: uri}
	v.CodeSha256, v.CodeSize = "", 0
	if m := digests.FindStringSubmatch(uri); m != nil {
		v.Package.ResolvedURI, v.CodeSha256 = uri, m[1]
	}
	return nil
}

// zipPackage is a zip package, wherever it is, and its digest.
type zipPackage struct {
	data *io.SectionReader
	sum  [sha256.Size]byte
}

// packZip keeps a zip package for who builds it.
func (c *control) packZip(ctx context.Context, id functions.ID, v *functions.Version, z zipPackage) error {
	if err := checkZip(z.data); err != nil {
		return err
	}
	key, err := c.packages.Put(ctx, id, hex.EncodeToString(z.sum[:]), z.data)
	if err != nil {
		return fmt.Errorf("keep a zip package of %s: %w", id, err)
	}
	v.Package = functions.Package{Zip: key}
	v.CodeSha256, v.CodeSize = base64.StdEncoding.EncodeToString(z.sum[:]), z.data.Size()
	return nil
}

// checkRuntime refuses a zip's configuration that nothing can run.
func (c *control) checkRuntime(v *functions.Config) error {
	switch {
	case v.Entrypoint != nil || v.Command != nil || v.Workdir != "":
		return refuse("Please don't provide ImageConfig when the intended function PackageType is Zip.")
	case v.Runtime == "" || v.Handler == "":
		return refuse("Runtime and Handler are mandatory parameters for functions created with deployment packages.")
	case !slices.Contains(c.runtimes, v.Runtime):
		return refuse("The runtime parameter of %s is not supported: the operator of this region has mapped no base image to it. Supported: %s",
			v.Runtime, strings.Join(c.runtimes, ", "))
	}
	return nil
}

// checkZip reads a package's directory: who builds it reads the rest.
func checkZip(data *io.SectionReader) error {
	z, err := zip.NewReader(&directory{data, mostDirectory, 2 * mostFiles}, data.Size())
	if errors.Is(err, errDirectory) || err == nil && len(z.File) > mostFiles {
		return refuse("The package must have at most %d files, with at most %d bytes of their headers at its end.", mostFiles, mostDirectory)
	}
	if err != nil {
		return refuse("Could not unzip uploaded file. Please check your file, then try to upload again.")
	}
	var size uint64
	for _, f := range z.File {
		if size += f.UncompressedSize64; f.UncompressedSize64 > mostUnzipped || size > mostUnzipped {
			return unzipsTooLarge()
		}
	}
	return nil
}

// unzipsTooLarge refuses a package for what is in it.
func unzipsTooLarge() error {
	return refuse("Unzipped size must be smaller than %d bytes", mostUnzipped)
}

// directory is a package of whose directory the zip reader gets no more than it
// may take into memory. The reader looks for its end first, at some headers twice.
type directory struct {
	io.ReaderAt
	bytes, headers int // that it may still get
}

// errDirectory says that a package's directory is too long.
var errDirectory = errors.New("too many files, or too long names")

// ReadAt implements io.ReaderAt.
func (d *directory) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.ReaderAt.ReadAt(p, off)
	d.bytes -= n
	d.headers -= bytes.Count(p[:n], []byte("PK\x01\x02")) // each file has this in the directory
	if d.bytes < 0 || d.headers < 0 {
		return 0, errDirectory
	}
	return n, err
}
