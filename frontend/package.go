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
	"regexp"
	"slices"
	"strings"
	"time"

	"thaw/functions"
	"thaw/lambdaapi"
)

// Limits of packages in bytes.
const (
	mostZipped   = 52428800
	mostUnzipped = 262144000
	mostFiles    = 100000 // of a zip: its directory is read into memory, some 300 bytes each
	mostURI      = 2048   // more than any name of an image that registries take
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
	case s.object != object{}:
		data, err := c.fetch(ctx, s.object)
		if err != nil {
			return err
		}
		return c.packZip(ctx, id, v, data)
	case len(s.zip) == 0:
		return refuse("Please provide a source for function code.")
	}
	return c.packZip(ctx, id, v, s.zip)
}

const (
	// fetchTime bounds the reading of a package from S3: SDKs wait for a minute.
	fetchTime = 50 * time.Second
	// fetches is how many packages are read from S3 at a time: each is in memory.
	fetches = 2
)

// ObjectError is what an S3 service answers instead of an object.
type ObjectError struct{ Code, Message string }

// Error gives code and message.
func (e *ObjectError) Error() string { return e.Code + ": " + e.Message }

// fetch reads a package from S3.
func (c *control) fetch(ctx context.Context, o object) ([]byte, error) {
	if c.objects == nil {
		return nil, refuse("S3Bucket and S3Key are not supported here: the operator of this region has named no S3 service (--s3). Please provide the package as ZipFile.")
	}
	if o.bucket == "" || o.key == "" {
		return nil, refuse("Please provide both S3Bucket and S3Key.")
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	select {
	case c.fetching <- struct{}{}:
		defer func() { <-c.fetching }()
	case <-ctx.Done():
		return nil, lambdaapi.TooManyRequestsException.Errorf("Too many packages are read from S3 at the moment. Please try again.")
	}
	data, err := c.objects(ctx, o.bucket, o.key, o.version, mostZipped)
	var said *ObjectError
	if errors.As(err, &said) {
		return nil, refuse("Error occurred while GetObject. S3 Error Code: %.100s. S3 Error Message: %.500s", said.Code, said.Message)
	}
	if err != nil {
		return nil, fmt.Errorf("read a package from S3: %w", err)
	}
	return data, nil
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

// packZip keeps a zip package for who builds it.
func (c *control) packZip(ctx context.Context, id functions.ID, v *functions.Version, data []byte) error {
	if err := checkZip(data); err != nil {
		return err
	}
	if err := c.checkRuntime(&v.Config); err != nil {
		return err
	}
	if c.packages == nil {
		return refuse("Zip packages are not supported here. Please provide an image.")
	}
	sum := sha256.Sum256(data)
	key, err := c.packages.Put(ctx, id, hex.EncodeToString(sum[:]), data)
	if err != nil {
		return fmt.Errorf("keep a zip package of %s: %w", id, err)
	}
	v.Package = functions.Package{Zip: key}
	v.CodeSha256, v.CodeSize = base64.StdEncoding.EncodeToString(sum[:]), int64(len(data))
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
func checkZip(data []byte) error {
	if len(data) > mostZipped {
		return lambdaapi.RequestTooLargeException.Errorf("Zipped size must be smaller than %d bytes", mostZipped)
	}
	if bytes.Count(data, []byte("PK\x01\x02")) > mostFiles { // each file has this in the directory
		return refuse("The package must have at most %d files.", mostFiles)
	}
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return refuse("Could not unzip uploaded file. Please check your file, then try to upload again.")
	}
	var size uint64
	for _, f := range z.File {
		if size += f.UncompressedSize64; f.UncompressedSize64 > mostUnzipped || size > mostUnzipped {
			return refuse("Unzipped size must be smaller than %d bytes", mostUnzipped)
		}
	}
	return nil
}
