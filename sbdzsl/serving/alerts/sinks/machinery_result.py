"""Results as an OPC UA server shows them, by the names and meanings of OPC 40001-101, Machinery Result Transfer 1.01.

The types carry the names of the specification but stand in a namespace of our own: this is not its node set. What is
left out: `GetResultIdListFiltered` (browse `Results` instead) and the transfer of files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from sbdzsl.runtime import require
from sbdzsl.serving.alerts.alert import Alert

NAMESPACE = "urn:sbdzsl:machinery-result"

#: Errors of our own, as the specification has them: below 0.
NO_SUCH_RESULT, NOT_STORED = -1, -2

#: `ResultState`: 1 completed, 4 failed. An image that could not be judged is a failure to make a result.
_COMPLETED, _FAILED = 1, 4
_SEVERITIES = {"good": 100, "unseen": 500, "defect": 700, "error": 700}

#: Durable receipt of one result; False if none waited for it.
Acknowledge = Callable[[str], Awaitable[bool]]


class ResultManagement:
    """The object `ResultManagement` of a server, with the latest results, at most `capacity`."""

    def __init__(self, server: Any, capacity: int) -> None:
        self._ua, self._server, self.capacity = require("asyncua.ua"), server, capacity
        self._results: OrderedDict[str, tuple[Any, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, result_id: str) -> bool:
        return result_id in self._results

    async def build(self, acknowledge: Acknowledge | None) -> None:
        """Make types, object, methods and event. `AcknowledgeResults` is there only with `acknowledge`."""
        ua, server = self._ua, self._server
        self._namespace = await server.register_namespace(NAMESPACE)
        self._type = await _make_types(server, self._namespace)
        self._object = await server.nodes.objects.add_object(self._namespace, "ResultManagement")
        self._folder = await self._object.add_folder(self._namespace, "Results")
        kind = ua.VariantType
        properties = [("ResultId", kind.String), ("ResultState", kind.Int32), ("ResultEvaluation", kind.Int32)]
        properties += [("PartId", kind.String), ("ResultContent", kind.String)]
        event = await server.create_custom_event_type(
            self._namespace, "ResultReadyEventType", ua.ObjectIds.BaseEventType, properties
        )
        self._ready = await server.get_event_generator(event, self._object)
        await self._add_methods(acknowledge)

    async def add(self, alert: Alert, announce: bool = True) -> None:
        """Show a result, in place of the oldest where there is no room; the event ResultReady tells subscribers."""
        ua = self._ua
        while len(self._results) >= self.capacity:
            await self.remove(next(iter(self._results)))
        result = _result(ua, alert)
        node = await self._folder.add_variable(
            ua.NodeId(alert.id, self._namespace),
            ua.QualifiedName(alert.id, self._namespace),
            result,
            datatype=self._type,
        )
        self._results[alert.id] = node, result
        if announce:
            event, about, document = self._ready.event, result.ResultMetaData, alert.document
            event.ResultId, event.ResultState = about.ResultId, about.ResultState
            event.ResultEvaluation, event.PartId = int(about.ResultEvaluation), about.PartId
            event.ResultContent, event.Severity = result.ResultContent[0].Value, _SEVERITIES[document["verdict"]]
            await self._ready.trigger(message=about.ResultEvaluationDetails.Text)

    async def remove(self, result_id: str) -> None:
        """Show a result no more."""
        node, _ = self._results.pop(result_id)
        await self._server.delete_nodes([node])

    async def _add_methods(self, acknowledge: Acknowledge | None) -> None:
        ua, add = self._ua, self._object.add_method
        kind = ua.VariantType
        result_id, timeout = _argument(ua, "ResultId", kind.String), _argument(ua, "Timeout", kind.Int32)
        handle, error = _argument(ua, "ResultHandle", kind.UInt32), _argument(ua, "Error", kind.Int32)
        outputs = [handle, _argument(ua, "Result", self._type), error]
        await add(self._namespace, "GetResultById", self._get_result_by_id, [result_id, timeout], outputs)
        await add(self._namespace, "GetLatestResult", self._get_latest_result, [timeout], outputs)
        await add(self._namespace, "ReleaseResultHandle", self._release_result_handle, [handle], [error])
        if acknowledge is None:
            return

        async def acknowledge_results(_parent: Any, wanted: Any) -> list[Any]:
            codes = [await self._acknowledged(one, acknowledge) for one in wanted.Value or ()]
            is_bad = any(codes)
            return [
                ua.Variant(codes if is_bad else [], kind.Int32, is_array=True),
                ua.Variant(min(codes) if is_bad else 0, kind.Int32),
            ]

        result_ids = _argument(ua, "ResultIds", kind.String, is_list=True)
        codes = _argument(ua, "ErrorPerResultId", kind.Int32, is_list=True)
        await add(self._namespace, "AcknowledgeResults", acknowledge_results, [result_ids], [codes, error])

    async def _get_result_by_id(self, _parent: Any, wanted: Any, _timeout: Any) -> list[Any]:
        return self._answer(self._results.get(wanted.Value))

    async def _get_latest_result(self, _parent: Any, _timeout: Any) -> list[Any]:
        return self._answer(next(reversed(self._results.values()), None))

    async def _release_result_handle(self, _parent: Any, _handle: Any) -> list[Any]:
        return [self._ua.Variant(0, self._ua.VariantType.Int32)]

    def _answer(self, found: tuple[Any, Any] | None) -> list[Any]:
        """Handle, result, error. A handle keeps nothing alive here, so that all are 0 and no time-out is needed."""
        ua = self._ua
        kind, (result, code) = ua.VariantType, (found[1], 0) if found else (_nothing(ua), NO_SUCH_RESULT)
        return [ua.Variant(0, kind.UInt32), ua.Variant(result, kind.ExtensionObject), ua.Variant(code, kind.Int32)]

    async def _acknowledged(self, result_id: str, acknowledge: Acknowledge) -> int:
        try:
            was_waiting = await acknowledge(result_id)
        except Exception:  # noqa: BLE001 - the client is told that its acknowledgement does not stand
            return NOT_STORED
        if result_id in self._results:
            await self.remove(result_id)
            return 0
        return 0 if was_waiting else NO_SUCH_RESULT


def _argument(ua: Any, name: str, kind: Any, is_list: bool = False) -> Any:
    node_id = kind if isinstance(kind, ua.NodeId) else ua.NodeId(kind.value)
    rank, dimensions = (1, [0]) if is_list else (-1, [])
    return ua.Argument(Name=name, DataType=node_id, ValueRank=rank, ArrayDimensions=dimensions)


async def _make_types(server: Any, namespace: int) -> Any:
    """The structures of the specification's clause 10; the id of `ResultDataType`."""
    ua, making = require("asyncua.ua"), require("asyncua.common.structures104")
    kind, field = ua.VariantType, making.new_struct_field

    def optional(name: str, dtype: Any, array: bool = False) -> Any:
        return field(name, dtype, array=array, optional=True)

    evaluation = await making.new_enum(
        server, namespace, "ResultEvaluationEnum", ["Undefined", "OK", "NotOK", "NotDecidable"]
    )
    times = [field("StartTime", kind.DateTime), field("EndTime", kind.DateTime)]
    duration = ua.NodeId(ua.ObjectIds.Duration)
    times += [optional(name, duration) for name in ("AcquisitionDuration", "ProcessingDuration")]
    processing, _ = await making.new_struct(server, namespace, "ProcessingTimesDataType", times)
    about = [field("ResultId", kind.String)]
    about += [optional(name, kind.Boolean) for name in ("HasTransferableDataOnFile", "IsPartial", "IsSimulated")]
    about += [optional("ResultState", kind.Int32)]
    about += [optional(name, kind.String) for name in ("PartId", "InternalRecipeId", "InternalConfigurationId")]
    about += [optional("CreationTime", kind.DateTime), optional("ProcessingTimes", processing)]
    about += [optional("ResultUri", kind.String, array=True), optional("ResultEvaluation", evaluation)]
    about += [optional("ResultEvaluationDetails", kind.LocalizedText)]
    meta, _ = await making.new_struct(server, namespace, "ResultMetaDataType", about)
    content = [field("ResultMetaData", meta), optional("ResultContent", kind.Variant, array=True)]
    result, _ = await making.new_struct(server, namespace, "ResultDataType", content)
    await server.load_data_type_definitions()
    return result.nodeid


def _result(ua: Any, alert: Alert) -> Any:
    """The alert as `ResultDataType`. The document itself is the content, as JSON."""
    document = alert.document
    finished = datetime.fromisoformat(document["inspected_at"])
    spent_ms = sum(document[name] or 0.0 for name in ("decode_ms", "route_ms", "detect_ms"))
    details = " - ".join(word for word in (document["verdict"], document["surface"], document["looks"]) if word)
    about = ua.ResultMetaDataType(
        ResultId=alert.id,
        HasTransferableDataOnFile=False,
        IsPartial=False,
        IsSimulated=False,
        ResultState=_FAILED if document["verdict"] == "error" else _COMPLETED,
        PartId=document["part_id"],
        InternalRecipeId=document["surface"],
        InternalConfigurationId=document["bundle"],
        CreationTime=finished,
        ProcessingTimes=ua.ProcessingTimesDataType(
            StartTime=finished - timedelta(milliseconds=spent_ms), EndTime=finished, ProcessingDuration=float(spent_ms)
        ),
        ResultUri=[document["overlay_url"]] if document["overlay_url"] else None,
        ResultEvaluation=ua.ResultEvaluationEnum(document["result_evaluation"]),
        ResultEvaluationDetails=ua.LocalizedText(details),
    )
    content = ua.Variant(alert.to_json().decode(), ua.VariantType.String)
    return ua.ResultDataType(ResultMetaData=about, ResultContent=[content])


def _nothing(ua: Any) -> Any:
    """What a method returns beside an error: the specification's word for no id, and nothing else."""
    return ua.ResultDataType(ResultMetaData=ua.ResultMetaDataType(ResultId="NA"), ResultContent=None)
