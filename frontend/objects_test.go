package frontend

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/functions"
)

// A package comes from S3 as it is there; what S3 answers instead, and what is too
// large, is told as AWS tells it.
func TestPackageFromS3(t *testing.T) {
	r := newRegion(t)
	data := zipped(t, map[string]string{"bootstrap": "#!/bin/sh"})
	c := newControl(control{
		store: r.store, secrets: newSecrets(testKeeper(t)), region: testRegion, packages: r, runtimes: []string{"provided.al2023"}, now: time.Now,
		objects: func(_ context.Context, bucket, key, version string, limit int64) ([]byte, error) {
			switch bucket + "/" + key + "@" + version {
			case "bucket/f.zip@", "bucket/f.zip@v2":
				return data, nil
			case "bucket/large@":
				return make([]byte, limit+1), nil
			case "bucket/broken@":
				return nil, errors.New("connection lost")
			}
			return nil, &ObjectError{"NoSuchKey", "The specified key does not exist."}
		},
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { serveTest(c, w, q) }))
	t.Cleanup(server.Close)
	r.url = server.URL
	client, f := r.client(testAccount), aws.String("f")
	in := func(bucket, key string) *lambda.CreateFunctionInput {
		return &lambda.CreateFunctionInput{FunctionName: f, Role: aws.String(testRole), Runtime: types.RuntimeProvidedal2023, Handler: aws.String("h"),
			Code: &types.FunctionCode{S3Bucket: &bucket, S3Key: &key}}
	}
	for key, want := range map[string][2]string{
		"none":   {"InvalidParameterValueException", "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: The specified key does not exist."},
		"large":  {"RequestTooLargeException", "Zipped size must be smaller than 52428800 bytes"},
		"broken": {"ServiceException", ""},
	} {
		_, err := client.CreateFunction(t.Context(), in("bucket", key))
		wantError(t, err, want[0], want[1])
	}
	both := in("bucket", "f.zip")
	both.Code.ZipFile = data
	_, err := client.CreateFunction(t.Context(), both)
	wantError(t, err, "InvalidParameterValueException", "Please do not provide other FunctionCode parameters when providing a ZipFile.")
	if got := must(client.CreateFunction(t.Context(), in("bucket", "f.zip"))); got.CodeSize != int64(len(data)) {
		t.Errorf("created: %+v", got)
	}
	stored := must(r.store.Get(t.Context(), functions.ID{Account: testAccount, Name: "f"}))
	if !bytes.Equal(r.zips[stored.Latest.Package.Zip], data) {
		t.Error("the package has not been kept")
	}
	r.build("f", functions.Result{Image: "i", Root: "r1"})
	must(client.UpdateFunctionCode(t.Context(), &lambda.UpdateFunctionCodeInput{FunctionName: f, S3Bucket: aws.String("bucket"), S3Key: aws.String("f.zip"), S3ObjectVersion: aws.String("v2")}))
}
