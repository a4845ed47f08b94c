package frontend

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"

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
	s3       bool // names a bucket or an object
	kms      bool // is encrypted with a key of its own
	updating bool
}

func sourceOf(q *lambdaapi.CreateFunctionRequest) source {
	code := q.Code
	return source{
		kind: value(q.PackageType), image: value(code.ImageUri), zip: code.ZipFile,
		s3: value(code.S3Bucket) != "" || value(code.S3Key) != "", kms: value(code.SourceKMSKeyArn) != "",
	}
}

func sourceOfUpdate(q *lambdaapi.UpdateFunctionCodeRequest, v *functions.Version) source {
	return source{
		kind: packageType(v), image: value(q.ImageUri), zip: q.ZipFile, updating: true,
		s3: value(q.S3Bucket) != "" || value(q.S3Key) != "", kms: value(q.SourceKMSKeyArn) != "",
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
	case s.kind == packageImage && (s.zip != nil || s.s3):
		return refuse("Please don't provide ZipFile or S3 objects when %s a function with packageType Image.", doing)
	case s.kind == packageZip && s.image != "":
		return refuse("Please don't provide ImageUri when %s a function with packageType Zip.", doing)
	case s.kms:
		return refuse("SourceKMSKeyArn is not supported here. Please leave it out.")
	case s.kind == packageImage:
		return packImage(v, s.image)
	case s.s3:
		return refuse("S3Bucket and S3Key are not supported here. Please provide the package as ZipFile.")
	case len(s.zip) == 0:
		return refuse("Please provide a source for function code.")
	}
	return c.packZip(ctx, id, v, s.zip)
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
