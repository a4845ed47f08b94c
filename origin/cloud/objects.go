package cloud

import (
	"context"
	"errors"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob/s3blob"
)

// Objects reads objects that others name, of one S3 service. Its credentials come
// from the environment, as an origin's do. It is safe for concurrent use.
type Objects struct{ s3 *s3Objects }

// ErrOtherBucket says that only one bucket may be read, and that it is another.
var ErrOtherBucket = errors.New("this bucket is not open to functions")

// parallelObjects is how many connections to the service are kept.
const parallelObjects = 4

// OpenObjects opens the service of a URL, s3://[BUCKET]?endpoint=…&region=…, with
// the parameters that an origin's has. With a bucket, only that one is read. It
// does not reach out.
func OpenObjects(ctx context.Context, u *url.URL) (*Objects, error) {
	if u.Scheme != s3blob.Scheme || u.Path != "" || u.User != nil {
		return nil, errors.New("want s3://[BUCKET]?endpoint=URL&region=R, without credentials")
	}
	s, err := newS3(ctx, u, parallelObjects)
	if err != nil {
		return nil, explain(ctx, err)
	}
	return &Objects{s}, nil
}

// Get opens an object, or one of its versions, of so many bytes, or -1 if the
// service does not say. A body that is shorter ends with an error. The caller
// closes it; ctx ends its reading. What the service answers is a smithy.APIError.
func (o *Objects) Get(ctx context.Context, bucket, key, version string) (body io.ReadCloser, size int64, err error) {
	if o.s3.bucket != "" && o.s3.bucket != bucket || slices.Contains(strings.Split(key, "/"), "..") { // which a proxy may resolve
		return nil, 0, ErrOtherBucket
	}
	in := &s3.GetObjectInput{Bucket: &bucket, Key: &key}
	if version != "" {
		in.VersionId = aws.String(version)
	}
	out, err := o.s3.client.GetObject(ctx, in)
	if err != nil {
		return nil, 0, err
	}
	size = -1
	if out.ContentLength != nil {
		size = *out.ContentLength
	}
	return out.Body, size, nil
}
