package lambdaapi

import (
	"errors"
	"testing"
)

func TestRoute(t *testing.T) {
	for _, c := range []struct {
		method, target string
		op             Op
		name           string // of the function or resource
	}{
		{"POST", functions, OpCreateFunction, ""},
		{"POST", functions + "/", OpCreateFunction, ""},
		{"GET", functions + "/?MaxItems=3", OpListFunctions, ""},
		{"GET", functions + "/f", OpGetFunction, "f"},
		{"GET", functions + "/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af%3A%24LATEST/configuration/", OpGetFunctionConfiguration, "arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST"},
		{"POST", functions + "/f/invocations?Qualifier=1", OpInvoke, "f"},
		{"POST", "/2014-11-13/functions/f/invoke-async/", OpInvokeAsync, "f"},
		{"GET", "/2019-09-30/functions/f/provisioned-concurrency?List=ALL", OpListProvisionedConcurrencyConfigs, "f"},
		{"GET", "/2019-09-30/functions/f/provisioned-concurrency?Qualifier=1", OpGetProvisionedConcurrencyConfig, "f"},
		{"GET", "/2019-09-25/functions/f/event-invoke-config/list", OpListFunctionEventInvokeConfigs, "f"},
		{"GET", "/2019-09-25/functions/f/event-invoke-config", OpGetFunctionEventInvokeConfig, "f"},
		{"GET", functions + "/a%2Fb", OpGetFunction, "a/b"},
		{"GET", functions + "/+%2B%20", OpGetFunction, "++ "},
	} {
		op, vars, err := Route(request(c.method, c.target, ""))
		if err != nil || op != c.op || vars["FunctionName"] != c.name {
			t.Errorf("%s %s: %s %v %v", c.method, c.target, op, vars, err)
		}
	}
	for _, c := range []struct {
		method, target string
		want           Kind
	}{
		{"GET", "/", UnknownOperationException},
		{"GET", "//2015-03-31/functions", UnknownOperationException},
		{"GET", functions + "//configuration", UnknownOperationException},
		{"GET", functions + "/f//", UnknownOperationException},
		{"GET", functions + "/a/b", UnknownOperationException},
		{"GET", "/2018-10-31/layer", UnknownOperationException},
		{"PATCH", functions, MethodNotAllowedException},
		{"GET", functions + "/f/invocations", MethodNotAllowedException},
	} {
		if op, _, err := Route(request(c.method, c.target, "")); !errors.Is(err, c.want) {
			t.Errorf("%s %s: %s %v", c.method, c.target, op, err)
		}
	}
}

// What the service has and this one does not is refused by its name.
func TestRouteRefused(t *testing.T) {
	for target, name := range map[string]string{
		"/2018-10-31/layers":                         "ListLayers",
		"/2018-10-31/layers?find=LayerVersion&Arn=a": "GetLayerVersionByArn",
		"/2018-10-31/layers/l/versions/1/policy":     "GetLayerVersionPolicy",
	} {
		_, _, err := Route(request("GET", target, ""))
		refused(t, target, err, InvalidParameterValueException, name+" is not supported here.")
	}
}
