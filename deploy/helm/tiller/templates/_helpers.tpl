{{- define "tiller.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tiller.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tiller.labels" -}}
{{ include "tiller.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "tiller.scheme" -}}
{{ ternary "HTTPS" "HTTP" (ne .Values.tls.secretName "") }}
{{- end -}}

{{/* How a probe calls a path. Arguments: the root context, and the path. */}}
{{- define "tiller.probe" -}}
httpGet:
  path: {{ index . 1 }}
  port: api
  scheme: {{ include "tiller.scheme" (index . 0) }}
timeoutSeconds: 5
{{- end -}}

{{/* The name of the Secret with the access tokens. Empty: they are in the configuration. */}}
{{- define "tiller.tokenSecret" -}}
{{- if .Values.auth.existingSecret -}}
{{- .Values.auth.existingSecret -}}
{{- else if .Values.auth.tokens -}}
{{- include "tiller.name" . -}}-access-tokens
{{- end -}}
{{- end -}}

{{/* Refuses values that would make a server that does not start, or that ignores a value. */}}
{{- define "tiller.check" -}}
{{- $server := .Values.config.server | default dict -}}
{{- range $key, $value := dict "host" "the chart sets it" "port" "set service.port" "drain_seconds" "set drainSeconds" "tls" "set tls.secretName" -}}
{{- if hasKey $server $key -}}
{{- fail (printf "config.server.%s: %s" $key $value) -}}
{{- end -}}
{{- end -}}
{{- range $key := list "cache_directory" "data_directory" -}}
{{- if hasKey $.Values.config $key -}}
{{- fail (printf "config.%s: the chart mounts a volume for it, see persistence" $key) -}}
{{- end -}}
{{- end -}}
{{- $auth := .Values.config.auth | default dict -}}
{{- $tokens := .Values.auth -}}
{{- if and $tokens.tokens $tokens.existingSecret -}}
{{- fail "auth: set either tokens or existingSecret" -}}
{{- end -}}
{{- if and $auth.tokens (or $tokens.tokens $tokens.existingSecret) -}}
{{- fail "config.auth.tokens: set either them or auth.tokens" -}}
{{- end -}}
{{- if not (or $auth.tokens $tokens.tokens $tokens.existingSecret) -}}
{{- fail "auth.tokens: the server needs an access token; `tiller token new --print-only NAME` prints one, and its entry" -}}
{{- end -}}
{{- $monitor := .Values.metrics.serviceMonitor -}}
{{- if and $monitor.enabled (not $monitor.tokenSecret.name) (not $auth.open_metrics) -}}
{{- fail "metrics.serviceMonitor.tokenSecret.name: Prometheus needs an access token with the scope metrics, or config.auth.open_metrics" -}}
{{- end -}}
{{- end -}}
