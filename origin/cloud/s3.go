package cloud

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	gcaws "gocloud.dev/aws"
	"gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"
)

// replyTimeout bounds the wait for a reply once a request is sent. S3 answers
// within seconds or closes; a server that hangs is tried again.
const replyTimeout = time.Minute

// errNoCredentials says that the AWS SDK found none.
var errNoCredentials = errors.New(
	"no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or profile= in the URL")

// openS3 opens a bucket of S3 or of a server that speaks its protocol. The
// query parameters are gocloud's; with an endpoint, path style is the default,
// since few servers have a host name for each bucket, and so is a region,
// which they do not check but signing needs.
func openS3(ctx context.Context, u *url.URL, parallel int) (*blob.Bucket, *s3Put, error) {
	q := u.Query()
	endpoint := q.Get("endpoint")
	pathStyle := endpoint != ""
	if s := q.Get("use_path_style"); s != "" {
		var err error
		if pathStyle, err = strconv.ParseBool(s); err != nil {
			return nil, nil, fmt.Errorf("use_path_style=%q is neither true nor false", s)
		}
		q.Del("use_path_style")
	}
	if endpoint != "" && q.Get("region") == "" && os.Getenv("AWS_REGION") == "" {
		q.Set("region", "us-east-1")
	}
	if q.Get("response_checksum_validation") == "" {
		// Names are checked by whoever opens a chunk or manifest, and the SDK
		// would print a line for each object that has no checksum.
		q.Set("response_checksum_validation", "when_required")
	}
	cfg, err := gcaws.V2ConfigFromURLParams(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	if cfg.Region == "" {
		return nil, nil, errors.New("no region: set AWS_REGION, or region= in the URL")
	}
	cfg.Credentials = credentials{cfg.Credentials}.unlessAnonymous()
	cfg.HTTPClient = awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		// The default keeps 10 connections: the others would be made anew each time.
		t.MaxIdleConnsPerHost, t.MaxIdleConns = parallel, parallel
		t.ResponseHeaderTimeout = replyTimeout
	})
	client := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = pathStyle })
	b, err := s3blob.OpenBucket(ctx, client, u.Host, nil)
	return b, &s3Put{client: client, bucket: u.Host}, err
}

// s3Put sends an object in one request, up to S3's 5 GiB. gocloud's writer
// would copy it, send more than 16 MiB in parts, which stay in the bucket
// unseen when the process is killed, and print what goes wrong.
type s3Put struct {
	client         *s3.Client
	bucket, prefix string
}

func (p *s3Put) put(ctx context.Context, key string, data []byte, ifAbsent bool) error {
	in := &s3.PutObjectInput{
		Bucket: &p.bucket, Key: aws.String(p.prefix + key), ContentType: aws.String(contentType),
		Body: bytes.NewReader(data), ContentLength: aws.Int64(int64(len(data))),
	}
	if ifAbsent {
		in.IfNoneMatch = aws.String("*")
	}
	_, err := p.client.PutObject(ctx, in)
	return err
}

// credentials marks the failure to find any.
type credentials struct{ aws.CredentialsProvider }

// Retrieve is aws.CredentialsProvider's.
func (c credentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	got, err := c.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return got, fmt.Errorf("%w (%w)", errNoCredentials, err)
	}
	return got, nil
}

// unlessAnonymous keeps anonymous access as it is: the SDK knows it by its type.
func (c credentials) unlessAnonymous() aws.CredentialsProvider {
	if aws.IsCredentialsProvider(c.CredentialsProvider, aws.AnonymousCredentials{}) {
		return c.CredentialsProvider
	}
	return c
}
