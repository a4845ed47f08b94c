package cloud

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
	gcaws "gocloud.dev/aws"
	"gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"

	"thaw/sdkhttp"
)

// replyTimeout bounds the wait for a reply once a request is sent. S3 answers
// within seconds or closes; a server that hangs is tried again.
const replyTimeout = time.Minute

// openS3 opens a bucket of S3 or of a server that speaks its protocol. The
// query parameters are gocloud's; with an endpoint, path style is the default,
// since few servers have a host name for each bucket, and so is a region,
// which they do not check but signing needs.
func openS3(ctx context.Context, u *url.URL, parallel int) (*blob.Bucket, *s3Objects, error) {
	s, err := newS3(ctx, u, parallel)
	if err != nil {
		return nil, nil, err
	}
	b, err := s3blob.OpenBucket(ctx, s.client, u.Host, nil)
	return b, s, err
}

// newS3 makes a client of the service that a URL names.
func newS3(ctx context.Context, u *url.URL, parallel int) (*s3Objects, error) {
	q := u.Query()
	endpoint := q.Get("endpoint")
	pathStyle := endpoint != ""
	if s := q.Get("use_path_style"); s != "" {
		var err error
		if pathStyle, err = strconv.ParseBool(s); err != nil {
			return nil, fmt.Errorf("use_path_style=%q is neither true nor false", s)
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
		return nil, err
	}
	if cfg.Region == "" {
		return nil, errors.New("no region: set AWS_REGION, or region= in the URL")
	}
	if !aws.IsCredentialsProvider(cfg.Credentials, aws.AnonymousCredentials{}) { // the SDK knows those by their type
		c := newCredentials(cfg.Credentials, func(ctx context.Context) (aws.CredentialsProvider, error) {
			cfg, err := gcaws.V2ConfigFromURLParams(ctx, q)
			return cfg.Credentials, err
		})
		cfg.Credentials = c
		cfg.APIOptions = append(cfg.APIOptions, c.middleware)
	}
	cfg.Logger = logging.Nop{} // it would print; what matters comes as an error
	transport := newTransport(cfg.HTTPClient, parallel)
	cfg.HTTPClient = &http.Client{Transport: sdkhttp.Transport{Base: transport}, CheckRedirect: follow}
	client := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = pathStyle })
	return &s3Objects{client: client, transport: transport, bucket: u.Host}, nil
}

// newTransport makes connections as the SDK would, so many at a time.
func newTransport(found aws.HTTPClient, parallel int) *http.Transport {
	sdk, ok := found.(*awshttp.BuildableClient) // with AWS_CA_BUNDLE in it
	if !ok {
		sdk = awshttp.NewBuildableClient()
	}
	t := sdk.GetTransport()
	// The default keeps 10 connections: the others would be made anew each time.
	t.MaxIdleConnsPerHost, t.MaxIdleConns = parallel, parallel
	t.ResponseHeaderTimeout = replyTimeout
	return t
}

// follow follows those redirects that keep the method. The token is for the
// host that it was sent to.
func follow(r *http.Request, via []*http.Request) error {
	if s := r.Response.StatusCode; s != http.StatusTemporaryRedirect && s != http.StatusPermanentRedirect || len(via) > 2 {
		return http.ErrUseLastResponse
	}
	if r.URL.Host != via[len(via)-1].URL.Host {
		r.Header.Del("X-Amz-Security-Token")
	}
	return nil
}

// s3Objects gets and puts objects, each in one request: up to S3's 5 GiB.
// gocloud's writer would copy an object, send more than 16 MiB in parts, which
// stay in the bucket unseen when the process is killed, and print what goes
// wrong; its reader would try again unseen.
type s3Objects struct {
	client         *s3.Client
	transport      *http.Transport
	bucket, prefix string
}

// get asks once, whatever the answer.
func (p *s3Objects) get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	out, err := p.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &p.bucket, Key: aws.String(p.prefix + key)},
		func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
	if err != nil {
		return nil, 0, err
	}
	return out.Body, aws.ToInt64(out.ContentLength), nil
}

func (p *s3Objects) put(ctx context.Context, key string, data []byte, ifAbsent bool) error {
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
