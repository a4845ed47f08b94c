package frontend

import "net/http"

const (
	preludeType = "application/vnd.awslambda.http-integration-response"
	s3Path      = "/s3/"
	logsTarget  = "Logs_20140328."
)

func (f *Frontend) serveURL(w http.ResponseWriter, r *http.Request, id, requestID string) {}
func (f *Frontend) serveS3(w http.ResponseWriter, r *http.Request, requestID string)      {}
func (f *Frontend) serveLogs(w http.ResponseWriter, r *http.Request, requestID string)    {}
